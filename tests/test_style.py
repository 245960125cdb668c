"""The size limits that keep a reader on one screen: files, functions, launch scripts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("harl_fast", "preprocess", "launch", "tests")
FILE_LINES = 400
FUNCTION_LINES = 60
LAUNCH_LINES = 80

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def too_long(source: str, *, file_lines: int) -> Iterator[str]:
    """Yield what exceeds the limits in a file's text."""
    lines = len(source.splitlines())
    if lines > file_lines:
        yield f"the file has {lines} lines, at most {file_lines} are allowed: split it"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {length} lines, over {FUNCTION_LINES}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    limit = LAUNCH_LINES if path.parent == ROOT / "launch" else FILE_LINES
    assert list(too_long(path.read_text(encoding="utf-8"), file_lines=limit)) == []


def test_a_long_file_and_a_long_function_are_found() -> None:
    source = "def f():\n" + "    pass\n" * FUNCTION_LINES
    assert [text.split()[2] for text in too_long(source, file_lines=FILE_LINES)] == ["f"]
    assert len(list(too_long("x = 1\n" * 9, file_lines=8))) == 1
    assert list(too_long("def f():\n" + "    pass\n" * (FUNCTION_LINES - 1), file_lines=60)) == []
