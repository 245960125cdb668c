"""The Dockerfile copies what there is, and runs the commands that the documentation has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STEPS = re.findall(r"^([A-Z]+) (.*)$", TEXT.replace("\\\n", " "), flags=re.MULTILINE)


def arguments(instruction: str) -> list[str]:
    return [words for name, words in STEPS if name == instruction]


def docker_works() -> bool:
    docker = shutil.which("docker")
    return (
        bool(docker) and not subprocess.run([str(docker), "info"], capture_output=True).returncode
    )


def test_everything_that_is_copied_is_there() -> None:
    copied = [words.split()[:-1] for words in arguments("COPY")]
    assert len(copied) > 3
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []


def test_the_environment_needs_nothing_that_is_copied_after_it() -> None:
    names = [name for name, _ in STEPS]
    before = " ".join(words for _, words in STEPS[: STEPS.index(("RUN", "make setup"))])
    for needed in ("Makefile", "pyproject.toml", "README.md", "LICENSE", "launch/setup.sh"):
        assert needed in before, needed
    for package in ("harl_fast", "preprocess"):  # what the editable install is to find
        assert f"{package}/__init__.py" in before
    assert names[0] == "FROM" and arguments("FROM")[0].startswith("nvidia/cuda:")
    assert STEPS[-2:] == [("COPY", ". ."), ("CMD", '["make", "help"]')]


def test_its_commands_are_the_documentations() -> None:
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    header = re.findall(r"^#   (?:  )?( *\S.*)$", TEXT, flags=re.MULTILINE)
    commands = " ".join(" ".join(header).replace("\\", "").split())
    (block,) = re.findall(r"```bash\n(docker build.*?)```", page, flags=re.DOTALL)
    assert commands == " ".join(block.replace("\\", "").split())
    run = [words for words in arguments("RUN") if words.startswith("make ")]
    targets = re.findall(r"make ([a-z-]+)", " ".join([commands, *run]))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(targets) == {"setup", "gpu-check"}
    assert all(f"\n{target}:" in makefile for target in targets)


def test_nothing_large_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    made = {
        line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if "/" in line
    }
    assert {".git", "data", "runs", "exports", "build", ".venv"} <= set(ignored)
    assert {name for name in made if name in ("data", "runs", "exports", "build")} <= set(ignored)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not docker_works(), reason="there is no Docker")
def test_the_image_is_built() -> None:
    subprocess.run(["docker", "build", "-t", "harl_fast-test", "."], cwd=ROOT, check=True)
    command = ["docker", "run", "--rm", "harl_fast-test", "make", "help"]
    assert "gpu-check" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
