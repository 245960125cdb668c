"""Result files that say where they come from, and that no other result overwrites."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harl_fast.errors import one_line
from harl_fast.files import naming, read_regular, write_bytes, write_json
from harl_fast.host import utc_time


def write_result(
    path: Path, result: Mapping[str, Any], *, provenance: Mapping[str, Any], name: str
) -> None:
    """Write a result as JSON, with "provenance", its "time" and its "name" before it.

    provenance: all that decides the result. One of the same provenance is replaced; any other
    file is kept beside it as <stem>-<its name>.json, and that is said. name: a few words.
    """
    made = json.loads(json.dumps(provenance))  # as it will be read: tuples are lists
    if path.exists():
        old = _read(path)
        if old.get("provenance") != made:
            kept = _keep(path, name=str(old.get("name", "older")))
            before = _difference(old.get("provenance"), made)
            print(one_line(f"note: {path} was of {before}; kept as {kept}"))
    write_json(path, {"name": name, "time": utc_time(), "provenance": made, **result})


def _read(path: Path) -> dict[str, Any]:
    """Return a result as `write_result` wrote it, or nothing for another file."""
    try:
        with naming(path):
            found = json.loads(read_regular(path))  # a pipe of that name would be waited for
    except (ValueError, RecursionError):  # no JSON, no text, or no end of brackets
        return {}
    return found if isinstance(found, dict) else {}


def _difference(old: object, new: Mapping[str, Any]) -> str:
    """Say in what two results' provenances differ."""
    if not isinstance(old, dict):
        return "unknown provenance"
    return "other " + ", ".join(sorted(k for k in {**old, **new} if old.get(k) != new.get(k)))


def _keep(path: Path, *, name: str) -> Path:
    """Copy a file to the first free name beside it and return that."""
    plain = re.sub(r"[^\w.-]+", "_", name)[:80]
    stem, content, number = f"{path.stem}-{plain}", path.read_bytes(), 1
    while (kept := path.with_name(f"{stem}{f'-{number}' * (number > 1)}{path.suffix}")).exists():
        number += 1
    write_bytes(kept, content)
    return kept
