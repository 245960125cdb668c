"""What this machine has, what is missing, and what to do: `python -m harl_fast.doctor`.

Only the standard library is imported here. Everything that may be broken is tried in a process of
its own, so that a missing module, a wrong build or a crash in native code becomes a row.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harl_fast.errors import HarlError, OutputError, one_line
from harl_fast.files import LONGEST_TMPDIR, check_output
from harl_fast.host import available_bytes, cpu, usable_cores
from harl_fast.program import run_main

State = Literal["ok", "warn", "fail"]
GB = 1 << 30
SETUP = "run `make setup`"


@dataclass(frozen=True)
class Row:
    """One finding."""

    name: str
    state: State
    value: str
    remedy: str = ""


def _run(*command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s
    )


def probe(code: str, *, timeout_s: float = 180.0) -> dict[str, Any] | str:
    """Return what ``code`` puts into the dict ``found``, or one line saying how it failed.

    It runs in a Python process of its own, which may therefore crash or hang.
    """
    program = f"import json\nfound = {{}}\n{code}\nprint('found:' + json.dumps(found))"
    try:
        result = _run(sys.executable, "-W", "ignore", "-c", program, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:.0f} s"
    for line in reversed(result.stdout.splitlines()):
        if line.startswith("found:") and result.returncode == 0:
            found: dict[str, Any] = json.loads(line.removeprefix("found:"))
            return found
    if result.returncode < 0:
        return f"the process was ended by signal {-result.returncode}"
    lines = result.stderr.strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {result.returncode}"


def first_line(*command: str) -> str:
    """Return the first line that a command prints, or an empty string if it fails."""
    try:
        result = _run(*command, timeout_s=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip().partition("\n")[0] if result.returncode == 0 else ""


def python() -> Row:
    """Report the interpreter."""
    value = f"{sys.version.split()[0]} ({sys.executable})"
    if (3, 10) <= sys.version_info[:2] < (3, 13):
        return Row("python", "ok", value)
    return Row("python", "fail", value, "make setup PYTHON=<a Python 3.10, 3.11 or 3.12>")


def pinned() -> Row:
    """Report whether the installed packages are those that pyproject.toml asks for."""
    try:
        wanted = importlib.metadata.requires("harl_fast") or []
        from packaging.requirements import Requirement
    except ImportError as error:  # PackageNotFoundError is one, too
        return Row("packages", "fail", f"not installed here ({error})", SETUP)
    wrong = []
    run = [r for r in map(Requirement, wanted) if not r.marker or r.marker.evaluate({"extra": ""})]
    for requirement in run:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Row("packages", "fail", "; ".join(wrong), SETUP)
    return Row("packages", "ok", f"all {len(run)} as pyproject.toml asks")


def compiler() -> Row:
    """Report the C++ compiler, which ffcv's and DeepSpeed's extensions are built with."""
    command = os.environ.get("CXX", "g++")
    version = first_line(*command.split(), "--version")
    if version:
        return Row("compiler", "ok", version)
    return Row("compiler", "fail", f"{command} does not run", f"install g++, or {SETUP}")


def python_headers() -> Row:
    """Report the interpreter's C headers."""
    path = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if path.is_file():
        return Row("python headers", "ok", str(path))
    package = f"python3.{sys.version_info[1]}-dev"
    return Row("python headers", "fail", f"{path} is missing", f"apt-get install {package}")


def headers(name: str, module: str, package: str, *, built: bool) -> Row:
    """Report a library's headers through pkg-config; needed only until ffcv is built."""
    version = first_line("pkg-config", "--modversion", module)
    if version:
        return Row(name, "ok", f"{module} {version}")
    found = "not known to pkg-config" if shutil.which("pkg-config") else "pkg-config is missing"
    remedy = f"sudo apt-get install -y --no-install-recommends pkg-config {package}"
    if built:
        return Row(name, "warn", f"{found} (ffcv is built already)", f"before rebuilding: {remedy}")
    return Row(name, "fail", found, f"{remedy}; then {SETUP}")


def turbojpeg_library() -> Row:
    """Report whether the TurboJPEG library loads."""
    name = ctypes.util.find_library("turbojpeg")
    try:
        if name is not None:
            ctypes.CDLL(name)
            return Row("libturbojpeg", "ok", name)
        found = "not found"
    except OSError as error:
        found = str(error)
    remedy = "sudo apt-get install libturbojpeg0 (conda: libjpeg-turbo)"
    # The search asks ldconfig and the compiler, which know nothing of a conda prefix.
    return Row("libturbojpeg", "warn", found, remedy)


HINTS = {
    "libGL": "sudo apt-get install libgl1",
    "libgthread": "sudo apt-get install libglib2.0-0",
    "libopencv": "OpenCV changed since ffcv was built: remove VENV and run `make setup`",
    "libturbojpeg": "sudo apt-get install libturbojpeg0",
    "distutils": "pip install 'setuptools>=75' into the environment: ffcv needs its distutils",
}
"""What to do about imports that fail with a certain word in the message."""


def imported(name: str, module: str, extra: str = "") -> Row:
    """Report whether a module imports; ``extra`` may set found['value']."""
    code = f"import {module}\nfound['value'] = ''\n{extra}"
    found = probe(code)
    if isinstance(found, str):
        hints = [hint for word, hint in HINTS.items() if word in found]
        return Row(name, "fail", found, (hints or [f"{SETUP}; its log is <VENV>/setup.log"])[0])
    try:
        version = importlib.metadata.version(name.replace("cv2", "opencv-python"))
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return Row(name, "ok", " ".join(part for part in (version, found["value"]) if part))


def numba_threads() -> Row:
    """Report how many threads numba may use, which bounds ffcv's decoding."""
    found = probe("import numba\nfound['threads'] = numba.config.NUMBA_NUM_THREADS")
    if isinstance(found, str):
        return Row("numba threads", "fail", found, SETUP)
    cores, threads = usable_cores(), found["threads"]
    value = f"{threads} for {cores} usable cores"
    if threads < cores:
        return Row("numba threads", "warn", value, "unset NUMBA_NUM_THREADS, or raise it")
    return Row("numba threads", "ok", value)


TORCH = """
import torch
found["version"] = torch.__version__
found["cuda"] = torch.version.cuda
found["devices"] = [
    f"{p.name}, {p.total_memory / 2**30:.0f} GB"
    for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
]
"""


def torch_and_devices() -> list[Row]:
    """Report torch, and the CUDA devices or else the processor's vector instructions."""
    found = probe(TORCH)
    if isinstance(found, str):
        return [Row("torch", "fail", found, SETUP), processor()]
    version = Row("torch", "ok", f"{found['version']}, built for CUDA {found['cuda']}")
    if found["devices"]:
        count = len(found["devices"])
        return [version, Row("CUDA devices", "ok", f"{count}: {'; '.join(found['devices'])}")]
    card = first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if card:
        remedy = f"update the driver for CUDA {found['cuda']}, and check CUDA_VISIBLE_DEVICES"
        return [version, Row("CUDA devices", "warn", f"{card}, but torch sees none", remedy)]
    return [version, Row("CUDA devices", "ok", "none; the CPU computes"), processor()]


def processor() -> Row:
    """Report the vector instructions that speed up computing on the CPU."""
    _, flags = cpu()
    wanted = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16"}
    value = ", ".join(f"{name} {'yes' if key in flags else 'no'}" for key, name in wanted.items())
    value = f"{usable_cores()} usable cores; {value}"
    if flags and "avx2" not in flags:
        return Row("CPU", "warn", value, "computing will be slow; use another machine if possible")
    return Row("CPU", "ok", value)


def shared_memory(path: Path = Path("/dev/shm")) -> Row:
    """Report shared memory, where NCCL exchanges data between GPUs."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return Row("shared memory", "fail", str(error), f"mount a tmpfs on {path}")
    left = [file for file in path.glob("deepspeed_*") if file.is_file()]
    value = f"{_size(usage.free)} free of {_size(usage.total)} in {path}"
    if left:
        value += f"; {len(left)} files of DeepSpeed, {_size(sum(_bytes(f) for f in left))}"
        remedy = f"if no run is under way: rm {path}/deepspeed_*"
        return Row("shared memory", "warn", value, remedy)
    if usage.free < GB:
        return Row("shared memory", "warn", value, "for 8 GPUs: docker run --shm-size=8g")
    return Row("shared memory", "ok", value)


def memory(data: Path | None) -> Row:
    """Report free memory, and whether the containers fit into it (they are read through it)."""
    free = available_bytes() or 0
    value = f"{_size(free)} available"
    if data is None:
        return Row("memory", "ok" if free > 2 * GB else "warn", value, "close other programs")
    sets = [data / split for split in ("train", "val")]
    needed = sum(_bytes(path) for folder in (data, *sets) for path in folder.glob("*.beton"))
    if needed == 0:
        remedy = f"make beton DATA=<images> OUT={data}"
        return Row("memory", "fail", f"{value}; no *.beton in {data}", remedy)
    value += f"; containers in {data}: {_size(needed)}"
    if needed > 0.8 * free:
        remedy = (
            "each epoch will read from disk: keep the folder on a local SSD, or write smaller "
            "containers (make beton MAX_RESOLUTION=400 QUALITY=85)"
        )
        return Row("memory", "warn", value, remedy)
    return Row("memory", "ok", value)


def file_limits() -> Row:
    """Report how many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    value = f"{soft} open files (hard limit {hard})"
    if soft != resource.RLIM_INFINITY and soft < 1024:
        return Row("file limits", "warn", value, "ulimit -n 4096")
    return Row("file limits", "ok", value)


def disk(folder: Path) -> Row:
    """Report free disk space where containers and runs go."""
    try:
        check_output(folder, option="the folder", folder=True)
    except OutputError as error:
        return Row("disk", "fail", str(error), "give OUT= and RUN= in another place")
    free = shutil.disk_usage(folder).free
    value = f"{_size(free)} free in {folder.resolve()}"
    if free < GB:
        return Row("disk", "fail", value, "free some, or give OUT= and RUN= on another disk")
    if free < 10 * GB:
        return Row("disk", "warn", value, "set-up takes 7 GB and ImageNet's containers 50 to 120")
    return Row("disk", "ok", value)


def temporary_files() -> Row:
    """Report the folder for temporary files, where worker processes have their sockets."""
    folder = Path(tempfile.gettempdir())
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        value = f"{folder}: too long for sockets, so no workers start"
        return Row("temporary files", "fail", value, f"TMPDIR= of at most {LONGEST_TMPDIR} letters")
    free = shutil.disk_usage(folder).free
    return Row("temporary files", "ok", f"{_size(free)} free in {folder}")


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _size(count: int) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / (1 << 20):,.0f} MB"


ACCELERATOR = """
import deepspeed.accelerator as a
found["value"] = "on " + a.get_accelerator().device_name()
"""


def examine(data: Path | None) -> Iterable[Row]:
    """Yield every finding, cheap ones first."""
    for check in (python, pinned, compiler, python_headers):
        yield check()
    ffcv = imported("ffcv", "ffcv, ffcv.loader")
    built = ffcv.state == "ok"
    yield headers("OpenCV headers", "opencv4", "libopencv-dev", built=built)
    yield headers("TurboJPEG headers", "libturbojpeg", "libturbojpeg0-dev", built=built)
    yield turbojpeg_library()
    yield imported("cv2", "cv2")
    yield ffcv
    yield numba_threads()
    yield from torch_and_devices()
    yield imported("torchvision", "torchvision")
    yield imported("deepspeed", "deepspeed", ACCELERATOR)
    yield shared_memory()
    yield memory(data)
    yield file_limits()
    yield temporary_files()
    yield disk(data or Path("."))


def show(row: Row) -> str:
    """Return a finding as one line, and its remedy as a second one if it needs one."""
    line = one_line(f"{row.state:<5} {row.name:<18} {row.value}")
    if row.state == "ok" or not row.remedy:
        return line
    return f"{line}\n{'':<24} -> {one_line(row.remedy)}"


def main(argv: Sequence[str] | None = None, *, checks: Callable[..., Any] = examine) -> int:
    """Print all findings; return 1 if any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m harl_fast.doctor",
        description="Say what this machine has, what is missing and what to do.",
    )
    parser.add_argument("--data", type=Path, help="folder of containers, to compare with memory")
    args = parser.parse_args(argv)
    if args.data is not None and not args.data.is_dir():
        raise HarlError(f"--data {args.data} is not a folder; give the folder of *.beton files")
    counts = {"ok": 0, "warn": 0, "fail": 0}
    for row in checks(args.data):
        counts[row.state] += 1
        print(show(row), flush=True)
    print(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures")
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    run_main(main)
