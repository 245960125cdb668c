"""The environment: one set of pins, nothing undeclared, and a set-up that stops cleanly."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn"}
"""Where a module's name is not its distribution's."""
DISTRIBUTIONS |= {"yaml": "pyyaml", "llvmlite": "numba", "packaging": "pytest", "tomli": "pytest"}
DISTRIBUTIONS |= {"markdown": "mkdocs-material", "nbformat": "nbclient", "google": "tensorboard"}
DISTRIBUTIONS |= {"triton": "torch"}
"""The last seven come with packages that are made of them or need them themselves."""
OPTIONAL = [("preprocess", extra) for extra in ("masks-onnx", "webdataset", "parquet", "ray")]
OPTIONAL += [("harl_fast", "timm"), ("harl_fast", "eval"), ("harl_fast", "export")]
"""Who imports what an extra brings."""
OURS = {"harl_fast", "preprocess", "launch", "tests", "benchmarks"}
OURS_AND_PYTHONS = sys.stdlib_module_names | OURS


def project() -> dict[str, Any]:
    """Return pyproject.toml's [project] table."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def conda() -> tuple[list[str], list[str]]:
    """Return environment.yml's conda packages and pip requirements."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return [entry for entry in dependencies if isinstance(entry, str)], pip


def requirements(texts: list[str]) -> dict[str, str]:
    """Return each requirement's specifier by name."""
    parsed = [Requirement(text) for text in texts]
    return {requirement.name.lower(): str(requirement.specifier) for requirement in parsed}


def test_conda_users_get_the_same_pins() -> None:
    table = project()
    wanted = table["dependencies"] + table["optional-dependencies"]["dev"]
    assert requirements(conda()[1]) == requirements(wanted)


def test_an_extra_has_the_pins_of_the_development_environment() -> None:
    extras = project()["optional-dependencies"]
    dev = requirements(extras["dev"])
    for name in ("masks-onnx", "timm", "export", "webdataset", "parquet", "eval", "notebook"):
        extra = requirements(extras[name])
        assert extra and extra.items() <= dev.items()


def test_conda_users_get_the_same_python() -> None:
    (python,) = [entry for entry in conda()[0] if entry.startswith("python")]
    assert str(Requirement(python).specifier) == str(
        Requirement(f"python{project()['requires-python']}").specifier
    )


@pytest.mark.parametrize("text", project()["dependencies"])
def test_every_dependency_has_an_upper_bound(text: str) -> None:
    operators = {specifier.operator for specifier in Requirement(text).specifier}
    assert operators & {"<", "==", "<="}, f"{text}: a future release would be installed untested"


def third_party(folder: str) -> dict[str, str]:
    """Return the top-level modules imported below a folder that are not ours or Python's."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for name in (name.split(".")[0] for name in names):
                if name not in OURS_AND_PYTHONS | {"tomllib"}:  # Python's own from 3.11
                    found[name] = str(path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("folder", ["harl_fast", "preprocess", "launch", "tests", "benchmarks"])
def test_every_import_is_declared(folder: str) -> None:
    table = project()
    declared = requirements(table["dependencies"])
    # Imported only when a mask method, a source or a backbone needs it.
    for owner, extra in OPTIONAL:
        if folder == owner:
            declared |= requirements(table["optional-dependencies"][extra])
    if folder in ("tests", "benchmarks"):
        for extra in ("dev", "bench"):
            declared |= requirements(table["optional-dependencies"][extra])
    missing = {
        module: path
        for module, path in third_party(folder).items()
        if DISTRIBUTIONS.get(module, module) not in declared
        and not (folder == "harl_fast" and path.endswith("doctor.py"))  # it tries what may lack
    }
    assert missing == {}


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user without root, sudo, compiler and headers, in a fresh clone.

    The interpreter is this one; every other program that set-up may call is a stand-in.
    """
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "sha256sum", "cat", "tr"):
        (programs / name).symlink_to(shutil.which(name) or name)
    for name, body in {"id": "echo 1000", "sudo": "exit 1", "apt-get": "exit 99"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    environment = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
    return environment | {"PATH": str(programs), "PYTHON": sys.executable, "ROOT": str(tmp_path)}


def run_setup(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the set-up script of the given tree."""
    return subprocess.run(
        ["bash", "launch/setup.sh"],
        cwd=environment["ROOT"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def test_setup_without_rights_names_the_command_and_stops(bare_machine: dict[str, str]) -> None:
    result = run_setup(bare_machine)
    assert result.returncode == 2
    assert "sudo apt-get update && sudo apt-get install -y" in result.stderr
    for package in ("g++", "pkg-config", "libopencv-dev", "libturbojpeg0-dev"):
        assert package in result.stderr
    assert not (Path(bare_machine["ROOT"]) / ".venv").exists()


def test_setup_without_apt_names_other_ways(bare_machine: dict[str, str]) -> None:
    (Path(bare_machine["PATH"]) / "apt-get").unlink()
    result = run_setup(bare_machine)
    assert result.returncode == 2
    assert "dnf install" in result.stderr
    assert "conda env create" in result.stderr


@pytest.mark.parametrize("python", ["/nonexistent/python3.11", "false"])
def test_setup_refuses_an_interpreter_that_does_not_work(
    bare_machine: dict[str, str], python: str
) -> None:
    result = run_setup(bare_machine | {"PYTHON": python})
    assert result.returncode == 2
    assert f"PYTHON={python}" in result.stderr


def test_setup_does_nothing_in_a_finished_environment(bare_machine: dict[str, str]) -> None:
    root = Path(bare_machine["ROOT"])
    (root / ".venv").mkdir()
    key = subprocess.run(
        ["bash", "-c", "sha256sum pyproject.toml && pwd -P"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    (root / ".venv" / ".harl_fast-setup").write_text(key.stdout)
    finished = run_setup(bare_machine)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    (root / "pyproject.toml").write_text("[project]\n")
    assert run_setup(bare_machine).returncode == 2  # other pins: it would set up again


def test_setup_leaves_an_environment_of_another_clone_alone(
    bare_machine: dict[str, str], tmp_path: Path
) -> None:
    root, other = Path(bare_machine["ROOT"]), tmp_path / "other"
    other.mkdir()
    (other / "pyproject.toml").touch()
    (root / ".venv").mkdir()
    (root / ".venv" / ".harl_fast-setup").write_text(f"0123  pyproject.toml\n{other}\n")
    refused = run_setup(bare_machine)
    assert refused.returncode == 2 and f"belongs to {other}" in refused.stderr
    (other / "pyproject.toml").unlink()  # that clone is gone: the environment is free
    assert "belongs to" not in run_setup(bare_machine).stderr


def test_setup_begins_again_where_one_was_interrupted(bare_machine: dict[str, str]) -> None:
    venv = Path(bare_machine["ROOT"]) / ".venv"
    venv.mkdir()
    foreign = run_setup(bare_machine)
    assert foreign.returncode == 2 and "no environment" in foreign.stderr
    (venv / ".harl_fast-begun").touch()
    assert "apt-get update" in run_setup(bare_machine).stderr
