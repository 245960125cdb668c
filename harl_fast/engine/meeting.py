"""The ranks' first barrier, and the check that all of them work on the same things."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import harl_fast
from harl_fast import __version__
from harl_fast.engine.machine import Machine
from harl_fast.errors import CheckpointError, ConfigError, HarlError
from harl_fast.files import sha256_file

_SHOWN = 12
"""Digits of a digest that are compared and told."""


def meet(
    machine: Machine,
    *,
    timeout_minutes: float,
    meeting_minutes: float | None = None,
    log: Path | None = None,
    refusal: HarlError | None = None,
) -> None:
    """Join this rank to the others. Raises HarlError on all of them if rank 0 must not go on.

    Not all launchers end the other ranks then. timeout_minutes, meeting_minutes, log: see
    `deepspeed.start`. refusal: what this rank found.
    """
    from harl_fast import collectives
    from harl_fast.engine import deepspeed as ds

    if not ds.started():
        ds.start(machine, timeout_minutes=timeout_minutes, meeting_minutes=meeting_minutes, log=log)
    if collectives.any_rank(refusal is not None):
        raise refusal or CheckpointError("rank 0 was refused its outputs: see its message")


@functools.cache
def code_sha256() -> str:
    """Return a digest of this package's Python files: versions stay while files are edited."""
    total, package = hashlib.sha256(), Path(harl_fast.__file__).parent
    # An editor's lock on a file is a link to nothing.
    for path in sorted(filter(Path.is_file, package.rglob("*.py"))):
        total.update(f"{path.relative_to(package)} {sha256_file(path)}\n".encode())
    return total.hexdigest()


def check_alike(facts: Mapping[str, str]) -> None:
    """Raise ConfigError on all ranks if they found different things; all ranks must call it.

    Copies on each machine's own disk may differ, and files may be replaced while ranks start one
    after the other. facts: hexadecimal digests by what they are of, the same names on all ranks.
    """
    from harl_fast import collectives

    facts = {"versions of harl_fast": __version__, "files of harl_fast": code_sha256(), **facts}
    rows = collectives.gather_texts(list(facts.values()), width=_SHOWN)
    for name, (first, *others) in zip(facts, zip(*rows, strict=True), strict=True):
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise ConfigError(
                    f"the ranks have different {name}: rank 0 {first or 'none'}, rank {rank} "
                    f"{other or 'none'} (checksums, cut). Another job may have replaced "
                    f"files while the ranks started: start again; or give all machines the same "
                    f"files, command line and version of harl_fast"
                )
