"""Facts of a process and of the machine, read from Linux' /proc."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harl_fast.host import usable_cores

PACKAGES = (
    "ffcv",
    "torch",
    "torchvision",
    "deepspeed",
    "lightly",
    "numba",
    "numpy",
    "pillow",
    "opencv-python",
)


def memory_bytes() -> dict[str, int]:
    """Return this process's RssAnon, RssFile, RssShmem and VmHWM."""
    wanted = ("RssAnon", "RssFile", "RssShmem", "VmHWM")
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            found[name] = int(rest.split()[0]) * 1024
    return found


def busy_s() -> float:
    """Return the seconds all cores together were busy or stolen since the machine started."""
    user, nice, system, _, _, irq, softirq, steal = (
        int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def group_s(group: int) -> float:
    """Return the CPU seconds of a process group, with those of processes that ended within it.

    A process that ended is in its own line of /proc until its parent waits for it, and then in its
    parent's, with all that it had waited for itself: once in any case. Lost is one that nobody in
    the group waits for: whose parent ended first, or ignores SIGCHLD. Only in a stopped group are
    all lines of the same moment.
    """
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))  # utime, stime; of the waited-for, both
    return ticks / os.sysconf("SC_CLK_TCK")


def machine_facts() -> dict[str, object]:
    """Return CPU model, cores in use, kernel, Python and package versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return {
        "cpu": models[0] if models else "unknown",
        "cores": usable_cores(),
        "load_before": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": packages,
    }


def answer(
    module: str, words: Sequence[str], *, environment: Mapping[str, str], log: Path
) -> dict[str, Any]:
    """Run a module in a fresh process and return the JSON object that it prints last.

    environment: added to this process's. Its standard error is appended to the log. Raises
    RuntimeError, naming the log, when it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as stream:
        run = subprocess.run(
            [sys.executable, "-m", module, *words],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env=os.environ | environment,
            check=False,
        )
    lines = run.stdout.splitlines()
    if run.returncode or not lines:
        raise RuntimeError(f"{module} {words[0]} ended with {run.returncode}; see {log}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
