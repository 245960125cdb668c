"""Where a run comes from: program, data, machine and command line of each of its starts."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import harl_fast
from harl_fast.files import sha256_file, write_json

_LIBRARIES = ("torch", "deepspeed", "ffcv", "numpy", "numba", "safetensors")


@functools.cache
def code_version() -> str:
    """Return harl_fast's version, followed by the commit where it runs from a git checkout.

    Asked once a process, so that a checkout that moves on under a run does not count. The commit
    ends in "-dirty" if files differed from it.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    where = Path(__file__).parent
    try:
        answer = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return harl_fast.__version__
    return " ".join([harl_fast.__version__, answer.stdout.strip()]).strip()


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def note_start(
    path: Path, *, manifest: Path, data: dict[str, Any], step: int, ranks: int, source: Path | None
) -> None:
    """Add this start to the run's ``provenance.json``; call on one rank only.

    manifest: the container's JSON, whose SHA-256 is noted. data: more about the container. step:
    optimizer steps done before. source: where a new run's weights come from.
    """
    known = read_provenance(path)
    if manifest.is_file():
        data = {"manifest": str(manifest), "manifest_sha256": sha256_file(manifest), **data}
    start = {
        "time": now(),
        "step": step,
        "init_from": None if source is None else str(source),
        "command": sys.argv,
        "code": code_version(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "ranks": ranks,
    }
    write_json(path, {"data": data, "starts": [*known.get("starts", []), start]})


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what `note_start` wrote, or nothing where there is no such file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
