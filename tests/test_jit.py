"""Where machine code is kept between processes, what it depends on, and what is not trusted."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harl_fast import jit
from harl_fast.data.views.batch import decode_batch

ROOT = Path(__file__).parents[1]
PACKAGE = Path(jit.__file__).parent
FILES = sorted(path for name in ("harl_fast", "preprocess") for path in (ROOT / name).rglob("*.py"))
NOT_COMPILED = {"config.py", "errors.py", "jit.py", "options.py", "section.py"}
"""Imported by the files below, but nothing of theirs is called or read by compiled code."""
KERNEL = """
from harl_fast.jit import njit

@njit(cache=True)
def doubled(values):
    return values * {factor}

@njit("int64(int64)", cache=True)
def next_one(value):
    return value + 1
"""


def imported(file: Path) -> set[str]:
    """Return the files of our own that one imports, relative to the package."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harl_fast"):
            module = str(node.module).replace(".", "/")
            names = [module, *(f"{module}/{alias.name}" for alias in node.names)]
            found |= {f"{name}.py" for name in names if (ROOT / f"{name}.py").is_file()}
    return {name.removeprefix("harl_fast/") for name in found}


def kernels(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            called = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
            if any(ast.unparse(name) in ("njit", "numba.njit") for name in called):
                yield node


def test_machine_code_is_named_by_every_source_it_is_made_from() -> None:
    for name in jit.TOGETHER:
        assert imported(PACKAGE / name) - NOT_COMPILED <= set(jit.TOGETHER), name


def test_other_compiled_functions_use_nothing_but_their_own_file() -> None:
    together = {PACKAGE / name for name in jit.TOGETHER}
    for file in set(FILES) - together:
        tree = ast.parse(file.read_text())
        ours = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] in ("harl_fast", "preprocess")
            for alias in node.names
        }
        for kernel in kernels(tree):
            body = {n.id for part in kernel.body for n in ast.walk(part) if isinstance(n, ast.Name)}
            assert not body & ours, (file, kernel.name)


def test_numbas_own_store_is_not_used() -> None:
    for file in set(FILES) - {PACKAGE / "jit.py"}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numba"):
                assert not {"jit", "njit"} & {alias.name for alias in node.names}, file
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("numba."):
                assert "cache" not in {word.arg for word in node.keywords}, file
    assert isinstance(decode_batch._cache, jit._Store)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache" / "harl_fast"
    folder.mkdir(mode=0o700, parents=True)
    monkeypatch.setattr(jit, "_folder", lambda: folder)
    for said_once in (jit._tell_damaged, jit._tell_lost):
        said_once.cache_clear()
    return folder


def module(folder: Path, *, factor: int = 2) -> Any:
    """Return a newly imported module of two kernels, as a new process has it."""
    name = f"multiplied_by_{factor}"
    (folder / f"{name}.py").write_text(KERNEL.format(factor=factor))
    sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def loaded(made: Any, *, factor: int = 2) -> tuple[int, int]:
    """Use both kernels; return how often each was found in the store."""
    assert made.doubled(np.arange(3)).tolist() == [0, factor, 2 * factor] and made.next_one(4) == 5
    kernels = (made.doubled, made.next_one)
    return tuple(sum(kernel.stats.cache_hits.values()) for kernel in kernels)  # type: ignore[return-value]


def test_machine_code_is_found_again_until_its_source_changes(store: Path, tmp_path: Path) -> None:
    assert loaded(module(tmp_path)) == (0, 0)
    assert len(list(store.iterdir())) == 2
    assert loaded(module(tmp_path)) == (1, 1)
    assert loaded(module(tmp_path, factor=3), factor=3) == (0, 0)


def test_machine_code_depends_on_the_options_that_files_share(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(module(tmp_path)) == (0, 0)
    monkeypatch.setattr(jit, "FAST_SUMS", {"contract"})
    monkeypatch.setattr(jit, "_tools", jit._tools.__wrapped__)
    assert loaded(module(tmp_path)) == (0, 0)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: flipped(content, 0),
        lambda content: flipped(content, 40),
        lambda content: flipped(content, len(content) - 1),
    ],
)
def test_damaged_machine_code_is_made_again_and_said_once(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage
) -> None:
    module(tmp_path).doubled(np.arange(3))
    for file in store.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert loaded(module(tmp_path)) == (0, 0)
    (told,) = (record.getMessage() for record in caplog.records)
    assert "damaged" in told and str(store) in told
    assert loaded(module(tmp_path)) == (1, 1)


def test_a_store_that_fails_costs_no_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert loaded(module(tmp_path)) == (0, 0)
    (told,) = (record.getMessage() for record in caplog.records)
    assert "No space left" in told and str(store) in told
    monkeypatch.undo()
    monkeypatch.setattr(jit, "_folder", lambda: store)
    assert list(store.iterdir()) == []
    module(tmp_path)
    for file in store.iterdir():  # whatever cannot be read is no reason to stop either
        file.unlink()
        file.mkdir()
    with caplog.at_level(logging.WARNING):
        assert loaded(module(tmp_path)) == (0, 0)


FILL = """
import multiplied_by_2 as made
print(made.doubled(3), made.doubled(0.25), made.next_one(4))
"""


def test_processes_that_fill_one_store_at_once_do_not_clash(store: Path, tmp_path: Path) -> None:
    module(tmp_path)  # for its file
    for file in store.iterdir():
        file.unlink()
    environment = {"XDG_CACHE_HOME": str(store.parent), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FILL],
            env=os.environ | {"NUMBA_CACHE_DIR": ""} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (out.split(), errors) == (["6", "0.5", "5"], "")
    assert len(list(store.glob("*.code"))) == len(list(store.iterdir())) == 3
    made = module(tmp_path)
    assert (made.doubled(3), made.doubled(0.25)) == (6, 0.5)
    assert sum(made.doubled.stats.cache_hits.values()) == 2


def test_the_users_cache_is_used_and_an_empty_or_relative_one_is_none(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jit.store_folder() == tmp_path / "cache" / "harl_fast"
    assert jit.store_folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.chdir(tmp_path)
    for none in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", none)
        assert jit.store_folder() == tmp_path / "home" / ".cache" / "harl_fast"
    assert not (tmp_path / "relative").exists()


def _a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.touch()


def _writable_by_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    folder.chmod(0o775)


def _anothers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (_a_file, "exists"),
        (_writable_by_others, "chmod go-w"),
        (_anothers, "belongs to another user"),
    ],
)
def test_without_a_place_of_its_own_the_code_is_kept_for_one_process_and_it_says_so(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture, place, words: str
) -> None:
    place(tmp_path / "harl_fast", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        folder = jit.store_folder()
    assert folder.parent == tmp_path and folder.is_dir() and folder != tmp_path / "harl_fast"
    assert folder.stat().st_mode & 0o777 == 0o700
    (told,) = (record.getMessage() for record in caplog.records)
    assert str(tmp_path / "harl_fast") in told and "Set XDG_CACHE_HOME" in told and words in told


LOADER = """
import sys
from harl_fast.data.loader import EvalLoader
from harl_fast.program import run_main
run_main(lambda: len(EvalLoader(sys.argv[1], size_px=32)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", LOADER, "train.beton"],
        ["-m", "preprocess.beton", "--out", "out", "--demo-images", "20"],
        ["-m", "preprocess.masks", "--data", "set", "--out", "out"],
        ["-m", "preprocess.verify", "--deep", "train.beton"],
    ],
)
def test_a_compiler_that_is_switched_off_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "NUMBA_DISABLE_JIT" in line and "unset" in line, done
    assert list(tmp_path.iterdir()) == []
