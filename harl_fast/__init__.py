"""Fast self-supervised pretraining on images with attention from masks (HARL).

The names that `__init__.pyi` lists are the library's public interface; each is imported when it is
first used, since torch and FFCV take seconds. `examples/minimal.py` puts them together.
"""

import ast
import functools
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


@functools.cache
def _homes() -> dict[str, str]:
    """Return the module of each public name, as the stub that type checkers read has it."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    found = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f".{node.module}" for node in found for alias in node.names}


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and name in _homes():
        return getattr(importlib.import_module(_homes()[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_homes()])
