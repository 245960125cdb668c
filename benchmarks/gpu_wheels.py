"""`make gpu-wheels OUT=`: what a machine without a network lacks to run this project.

Wheels of the packages that it needs and does not have, in the versions of this environment, and the
shared libraries behind FFCV's compiled part, which come from the system here. Both machines must
have the same kind of processor and the same minor version of Python.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from harl_fast.errors import ConfigError, HarlError, few
from harl_fast.files import Progress, check_output, write_text
from harl_fast.program import run_main

BASE = re.compile(
    r"(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|mvec|stdc\+\+|gcc_s))\.so.*"
)
"""What belongs to a system that runs torch: glibc, whose parts must not be mixed, and the libraries
of the compiler, of which the newer one serves both."""
INSTEAD = {"opencv-python": ("opencv-python-headless", "opencv-contrib-python")}
"""Packages that hold the same module."""
TORCH = ("torch", "torchvision")
README = """\
What {project} needs on a machine without a network, for Python {python} on {machine}.

Copy this folder and the project's own to it, then in the project's folder, F being this one:

  python{python} -m pip install --no-index --no-deps --target F/site F/wheels/*.whl
  export PYTHONPATH=$PWD:F/site PATH=F/site/bin:$PATH
  export LD_LIBRARY_PATH=F/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}
  python{python} -m benchmarks.gpu_check

wheels/: {wheels}
lib/: {libraries} shared libraries that FFCV's compiled part loads, without those of glibc and of
the compiler. They need {newest} or newer there.
Taken to be there: {there}
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_wheels", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/gpu-wheels"), help="folder (%(default)s)")
    about = "what `pip freeze` prints on that machine (default: torch, torchvision, what they need)"
    add("--there", type=Path, metavar="FILE", help=about)
    return parser.parse_args(argv)


def plain(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(lines: Iterable[str]) -> set[str]:
    """Return the packages that lines of `pip freeze` or of requirements name."""
    found = (re.match(r"\s*([A-Za-z0-9][\w.-]*)", line) for line in lines)
    return {plain(match[1]) for match in found if match}


def needed(name: str) -> dict[str, str]:
    """Return a package's version and those of all that it needs, extras apart, as installed here.

    Raises ConfigError if the package itself is not installed.
    """
    found: dict[str, str] = {}
    ahead = [plain(name)]
    while ahead:
        each = ahead.pop()
        if each in found:
            continue
        try:
            found[each] = metadata.version(each)
        except metadata.PackageNotFoundError:
            if each == plain(name):
                raise ConfigError(f"{name} is not installed here: run `make setup`") from None
            continue  # of another system or version of Python
        required = metadata.requires(each) or []
        ahead += names_in(line for line in required if "extra ==" not in line)
    return found


def missing(project: str, there: Collection[str]) -> dict[str, str]:
    """Return the packages, with versions, that a project needs and a machine lacks."""
    present = {*there, *(name for name, others in INSTEAD.items() if {*others} & {*there})}
    versions = needed(project)
    del versions[plain(project)]
    return {name: version for name, version in sorted(versions.items()) if name not in present}


def build(requirements: Sequence[str], out: Path, *, options: Sequence[str] = ()) -> list[Path]:
    """Build or fetch a wheel of each requirement, without what it needs; return all in the folder.

    options: of `pip wheel`. Raises HarlError naming what failed.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out), *options]
    with Progress(len(requirements), label="wheels", unit="wheels") as progress:
        for each in requirements:
            done = subprocess.run([*command, each], capture_output=True, text=True)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1:] or ["no message"]
                raise HarlError(f"no wheel of {each}: {why[0]}; see `pip wheel --no-deps {each}`")
            progress.advance()
    return sorted(out.glob("*.whl"))


def compiled_part(package: str, stem: str) -> Path:
    """Return a package's shared library whose name begins with a text. Raises ConfigError."""
    for file in metadata.files(package) or []:
        if file.name.startswith(stem) and file.suffix == ".so":
            return Path(str(file.locate()))
    raise ConfigError(f"{package} has no {stem}*.so: run `make setup`")


def closure(library: Path) -> list[Path]:
    """Return all shared libraries that one loads, in turn, but for those of `BASE`.

    They are named as they are looked for. Raises HarlError if the system lacks one.
    """
    done = subprocess.run(["ldd", str(library)], capture_output=True, text=True)
    if done.returncode:
        raise HarlError(f"ldd {library}: {done.stderr.strip()}")
    return sorted(_found(done.stdout, library=library))


def _found(text: str, *, library: Path) -> Iterator[Path]:
    """Yield the paths that ldd prints."""
    lacking = re.findall(r"(\S+) => not found", text)
    if lacking:
        raise HarlError(f"{library} needs {few(lacking)}, which this system lacks")
    for name, path in re.findall(r"(\S+) => (/\S+)", text):
        if not BASE.fullmatch(name):
            yield Path(path).with_name(name)


def newest(libraries: Iterable[Path], symbol: str) -> str:
    """Return the newest version of a symbol that any of the libraries asks for, or nothing."""
    found = set[tuple[int, ...]]()
    for library in libraries:
        for match in re.findall(rf"\0{symbol}_([0-9.]+)(?=\0)".encode(), library.read_bytes()):
            found.add(tuple(map(int, match.decode().split("."))))
    return f"{symbol} {'.'.join(map(str, max(found)))}" if found else ""


def main(argv: list[str] | None = None) -> int:
    """Write the folder, and say how to install it."""
    args = parse(argv)
    check_output(args.out, option="--out", folder=True)
    there = {name for each in TORCH for name in needed(each)}
    if args.there is not None:
        there = names_in(args.there.read_text(encoding="utf-8").splitlines())
    lacking = missing("harl_fast", there)
    wheels, lib = args.out / "wheels", args.out / "lib"
    for folder in (wheels, lib):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    built = build([f"{name}=={version}" for name, version in lacking.items()], wheels)
    part = compiled_part("ffcv", "_libffcv")
    copied = [Path(shutil.copy(path, lib / path.name)) for path in closure(part)]
    versions = [newest([part, *copied], symbol) for symbol in ("GLIBC", "GLIBCXX")]
    text = README.format(
        project="harl_fast",
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        machine=f"{sys.platform} {platform.machine()}",
        wheels=", ".join(f"{name} {version}" for name, version in lacking.items()),
        libraries=len(copied),
        newest=" and ".join(filter(None, versions)),
        there=", ".join(sorted(there)),
    )
    write_text(args.out / "README.txt", text)
    size = sum(path.stat().st_size for path in (*built, *copied)) / 1e6
    print(f"{text}\n{len(built)} wheels and {len(copied)} libraries, {size:.0f} MB: {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
