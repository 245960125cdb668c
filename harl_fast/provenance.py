"""Where a run comes from: program, data, machine and command line of each of its starts."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import harl_fast
from harl_fast.errors import CheckpointError
from harl_fast.files import read_regular, sha256_file, write_json
from harl_fast.host import utc_time

_LIBRARIES = ("torch", "deepspeed", "ffcv", "numpy", "numba", "safetensors")


@functools.cache
def code_version() -> str:
    """Return harl_fast's version, followed by the commit where it runs from a git checkout.

    Asked once per process, so that a checkout that moves on under a run does not count. The commit
    ends in "-dirty" if files differed from it.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    where = Path(__file__).parent
    try:
        answer = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return harl_fast.__version__
    return " ".join([harl_fast.__version__, answer.stdout.strip()]).strip()


class PastStart(BaseModel):
    """What is noted of one start of a run; only what is read back is checked."""

    model_config = ConfigDict(extra="allow")

    step: int = 0
    """Optimizer steps done before."""
    init_from: str | None = None
    """Where a new run's weights come from."""


class Provenance(BaseModel):
    """Content of ``provenance.json``."""

    model_config = ConfigDict(extra="allow")

    run_id: str = Field("", max_length=100)
    """Random digits drawn at the run's first start, which every checkpoint of it carries too;
    runs of older versions have none before they are resumed."""
    data: dict[str, Any] = {}
    starts: list[PastStart] = []


def new_run_id() -> str:
    """Return random digits that no other run has."""
    return secrets.token_hex(8)


def note_start(
    path: Path,
    *,
    run_id: str,
    manifest: Path,
    data: dict[str, Any],
    step: int,
    ranks: int,
    source: Path | None,
    changes: dict[str, Any] | None = None,
) -> None:
    """Add this start to the run's ``provenance.json``; call on one rank only.

    manifest: the container's JSON, whose SHA-256 is noted. data: more about the container. step:
    optimizer steps done before. source: where a new run's weights come from. changes: settings
    that the user allowed to differ from those before, both values by key.
    """
    known = read_provenance(path)
    if manifest.is_file():
        data = {"manifest": str(manifest), "manifest_sha256": sha256_file(manifest), **data}
    start = {
        "time": utc_time(),
        "step": step,
        "init_from": None if source is None else str(source),
        "changes": changes or {},
        "command": sys.argv,
        "code": code_version(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "ranks": ranks,
    }
    starts = [*(start.model_dump(mode="json") for start in known.starts), start]
    write_json(path, {"run_id": run_id, "data": data, "starts": starts})


def read_provenance(path: Path) -> Provenance:
    """Return what `note_start` wrote; nothing is known where there is no such file.

    Raises CheckpointError if the file is damaged.
    """
    try:
        # Not by pydantic's own reader, which refuses names of files that are not UTF-8.
        return Provenance.model_validate(json.loads(read_regular(path)))
    except FileNotFoundError:
        return Provenance()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_reason(error)}). Move it away: the run goes on, "
            f"without what it says of earlier starts"
        ) from error


def first_reason(error: Exception) -> str:
    """Return in one short line why a JSON file does not serve."""
    if isinstance(error, ValidationError):
        issue = error.errors(include_input=False)[0]
        place = ".".join(map(str, issue["loc"]))
        return f"{ascii(place[:80])[1:-1]}: {issue['msg'][:120]}" if place else issue["msg"][:120]
    return f"{type(error).__name__}: {error}"[:120]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
