"""Writes auxiliary files: logs, pictures, run.json."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from harl_fast.errors import CheckpointError, why
from harl_fast.files import UnusualFileError, without_waiting


class SideOutputs:
    """Writes files that no training depends on: what cannot be written is told and left out.

    A file is told of once, until it can be written again.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lost: set[Path] = set()
        self._closed = False

    def close(self) -> None:
        """Leave out all that follows: the run folder is no longer this process's."""
        self._closed = True

    def write(self, path: Path, work: Callable[[], object]) -> bool:
        """Do ``work``, which writes ``path``; return whether it raised no OSError."""
        if self._closed:
            return False
        try:
            work()
        except OSError as error:
            if path not in self._lost:
                self._warn(
                    f"warning: {path} cannot be written; training goes on without it. {why(error)}"
                )
            self._lost.add(path)
            return False
        self._lost.discard(path)
        return True

    def lost(self, path: Path) -> bool:
        """Return whether the last write of ``path`` failed or was left out."""
        return self._closed or path in self._lost

    def append(self, path: Path, data: bytes) -> bool:
        """Append all of ``data`` to a file, or none of it; return whether it was possible."""
        return self.write(path, lambda: append_whole(path, data))


def append_whole(path: Path, data: bytes) -> None:
    """Append all of ``data`` to a regular file, or none of it; raises OSError.

    The folder is not made: one that is gone while a run trains would come back as no run's.
    """
    with open(path, "ab", buffering=0, opener=without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise UnusualFileError("not a regular file")
        before = stream.tell()
        try:
            while data:  # a disk that takes a part of it says why at the next call
                data = data[stream.write(data) :]
        except OSError:
            # Half a record would spoil the one that follows it.
            stream.truncate(before)
            raise


@contextlib.contextmanager
def required(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing what no run can do without into a CheckpointError of one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written to. {why(error)}, or give --run another folder; what is "
            f"in this one stays whole"
        ) from error
