"""What a machine without a network is given: the right packages, and libraries that suffice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_wheels
from benchmarks.gpu_wheels import (
    BASE,
    build,
    closure,
    compiled_part,
    missing,
    names_in,
    needed,
    newest,
)
from harl_fast.errors import ConfigError, HarlError
from harl_fast.steps import training

MAPPED = """\
import ctypes, sys
ctypes.CDLL(sys.argv[1])
with open("/proc/self/maps") as maps:
    print(*{line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}, sep="\\n")
"""


def test_the_libraries_of_a_compiled_part_suffice(tmp_path: Path) -> None:
    """Loaded with the copies first in the search path, all it maps is a copy or of the system."""
    part = compiled_part("ffcv", "_libffcv")
    for path in closure(part):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert {"libturbojpeg.so.0"} <= {path.name for path in tmp_path.iterdir()}

    def mapped(*words: str) -> set[Path]:
        env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
        command = [sys.executable, "-c", MAPPED, *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return set(map(Path, done.stdout.splitlines()))

    own = mapped(str(part)) - mapped("libc.so.6") - {part.resolve()}
    foreign = [path for path in own if path.parent != tmp_path and not BASE.fullmatch(path.name)]
    assert foreign == [] and len(own) > 5


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\tlibc.so.6 => /lib/libc.so.6 (0x01)\n\tlibjpeg.so.8 => not found\n"
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, text, "")
    )
    with pytest.raises(HarlError, match=r"needs libjpeg\.so\.8, which this system lacks"):
        closure(tmp_path / "x.so")


def test_what_is_there_is_not_carried() -> None:
    packages = missing("harl_fast", {name for each in gpu_wheels.TORCH for name in needed(each)})
    assert {"ffcv", "deepspeed", "hjson", "pydantic-core", "assertpy"} <= packages.keys()
    assert packages["deepspeed"] == "0.19.8"
    assert not {"torch", "triton", "numpy", "harl-fast", "pytest"} & packages.keys()
    frozen = ["Pydantic_Core==2.1", "opencv-python-headless @ file:///x", "# note", "", "ffcv"]
    names = names_in(frozen)
    assert names == {"pydantic-core", "opencv-python-headless", "ffcv"}
    left = missing("harl_fast", names)
    assert "numpy" in left and not {"opencv-python", "pydantic-core", "ffcv"} & left.keys()
    with pytest.raises(ConfigError, match="no-such is not installed"):
        needed("no-such")


def test_a_wheel_is_built_without_what_it_needs(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tiny"\nversion = "1.0"\ndependencies = ["no-such-package"]\n'
        '[tool.setuptools]\npy-modules = ["tiny"]\n'
    )
    (project / "tiny.py").write_text("VALUE = 1\n")
    offline = ("--no-index", "--no-build-isolation")
    (wheel,) = build([str(project)], tmp_path / "wheels", options=offline)
    assert "tiny.py" in zipfile.ZipFile(wheel).namelist()
    with pytest.raises(HarlError, match=r"no wheel of no-such==1\.0: "):
        build(["no-such==1.0"], tmp_path / "wheels", options=offline)


def test_the_newest_version_of_a_symbol_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\0GLIBC_2.9\0GLIBC_2.34\0GLIBCXX_3.4.29\0")
    (tmp_path / "b").write_bytes(b"\0GLIBC_2.2.5\0")
    files = [tmp_path / "a", tmp_path / "b"]
    assert newest(files, "GLIBC") == "GLIBC 2.34"
    assert newest(files, "GLIBCXX") == "GLIBCXX 3.4.29" and newest(files[1:], "GLIBCXX") == ""


def test_the_folder_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def built(requirements: list[str], out: Path) -> list[Path]:
        asked.extend(requirements)
        (out / "x.whl").write_bytes(b"x")
        return [out / "x.whl"]

    asked: list[str] = []
    monkeypatch.setattr(gpu_wheels, "build", built)
    there = tmp_path / "there.txt"
    there.write_text("\n".join(f"{name}==1" for name in needed("harl_fast") if name != "hjson"))
    out = tmp_path / "out"
    assert gpu_wheels.main(["--out", str(out), "--there", str(there)]) == 0
    assert [text.partition("==")[0] for text in asked] == ["hjson"]
    text = (out / "README.txt").read_text()
    assert f"python{sys.version_info[0]}.{sys.version_info[1]} -m benchmarks.gpu_check" in text
    assert "GLIBC 2." in text and not re.search(r"{[a-z]+}", text) and list((out / "lib").iterdir())
    assert "1 wheels and" in capsys.readouterr().out


def test_the_launcher_is_found_where_packages_lie_in_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert training(2)[2] == str(Path(sys.executable).with_name("deepspeed"))
    launcher = tmp_path / "site" / "bin" / "deepspeed"
    launcher.parent.mkdir(parents=True)
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", str(launcher.parent))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert training(2)[1:] == (
        sys.executable, str(launcher), "--log_level=error", "--num_gpus", "2"
    )  # fmt: skip
