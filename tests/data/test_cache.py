"""Where machine code is kept between processes, and what it depends on."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from harl_fast import data

FOLDER = Path(data.__file__).parent
NOT_COMPILED = {"config.py", "errors.py", "data/maskfield.py"}
"""Imported by the files below, but nothing of theirs is called or read by compiled code."""


def imported(file: Path) -> set[str]:
    """Return the files of our own that one imports, relative to the package."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harl_fast"):
            module = str(node.module).replace(".", "/")
            names = [module, *(f"{module}/{alias.name}" for alias in node.names)]
            found |= {
                f"{name}.py" for name in names if (FOLDER.parents[1] / f"{name}.py").is_file()
            }
    return {name.removeprefix("harl_fast/") for name in found}


def test_the_folder_is_named_by_every_source_of_the_machine_code() -> None:
    files = {(FOLDER / name).resolve() for name in data._COMPILED}
    named = {file.relative_to(FOLDER.parent).as_posix() for file in files}
    for file in files:
        assert imported(file) - NOT_COMPILED <= named, file


def test_the_users_cache_is_used_and_an_empty_variable_is_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data._cache_folder().parent == tmp_path / "cache" / "harl_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data._cache_folder().parent == tmp_path / "home" / ".cache" / "harl_fast"


def test_without_a_place_the_code_is_kept_for_one_process_and_it_says_so(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        folder = data._cache_folder()
    assert folder.parent == tmp_path and folder.is_dir()
    (told,) = (record.getMessage() for record in caplog.records)
    assert str(tmp_path / "file") in told and "Set XDG_CACHE_HOME" in told
