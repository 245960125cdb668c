"""docs/architecture.md names only files and functions that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs/architecture.md").read_text(encoding="utf-8").split())
PLACES = sorted(set(re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", PAGE)))


def names(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield what a module or class defines, methods as Class.method."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in names(node))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize(("path", "name"), PLACES, ids=[": ".join(filter(None, p)) for p in PLACES])
def test_the_page_names_what_there_is(path: str, name: str) -> None:
    files = [place for place in (ROOT / "harl_fast" / path, ROOT / path) if place.is_file()]
    assert files, path
    assert not name or name in names(ast.parse(files[0].read_text(encoding="utf-8")))


def test_the_page_leads_through_the_code() -> None:
    assert len(PLACES) > 50
