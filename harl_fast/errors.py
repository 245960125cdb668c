"""Errors that a user can act on, and the one place that turns them into an exit code."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable


class HarlError(Exception):
    """A failure whose message says what was found, where, and what to do."""


class ConfigError(HarlError):
    """A configuration file, key or combination that cannot be used."""


class DataError(HarlError):
    """A data set, container or sample that cannot be used."""


class CheckpointError(HarlError):
    """A checkpoint or run folder that cannot be used."""


class OutputError(HarlError):
    """A place where a program was to write and cannot."""


_REMEDIES = {
    errno.ENOSPC: "Free space there",
    errno.EDQUOT: "Free space there: your quota is used up",
    errno.EROFS: "Choose a place on a disk that can be written to",
    errno.EACCES: "Give this user the rights, or choose another place",
    errno.EPERM: "Give this user the rights, or choose another place",
    errno.ENOTDIR: "A part of this path is a file: choose another one",
    errno.EEXIST: "A file or broken link of this name is in the way: choose another one",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EMFILE: "Let this process open more files (`ulimit -n 4096`), or use fewer workers",
    errno.ENFILE: "Close other programs, or raise the system's limit (fs.file-max)",
    errno.ENOMEM: "Close other programs, or use fewer workers",
    errno.EAGAIN: "Let this user start more processes (`ulimit -u`), or use fewer workers",
    errno.EIO: "The disk or the network fails: see `dmesg`",
    errno.ESTALE: "The network file system lost it: mount it again",
}


def explain(error: OSError) -> str:
    """Return in one line what failed: the file, the system's reason, and what to do."""
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "Check that it is there and can be used")
    return f"{place}{reason}. {remedy}, then run the command again"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def run_main(main: Callable[[], int]) -> None:
    """Run a program's main and exit with its result; errors that a user can act on take one line.

    Exit codes: 2 on a `HarlError` or `OSError`, 130 on an interrupt, and 141, as a shell says it,
    where the reader of a pipe left.
    """
    try:
        code = main()
        sys.stdout.flush()
    except HarlError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if not _settle_output() and error.filename is None:
            error.filename = "standard output"
        print(f"error: {explain(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: nothing was left under a final name", file=sys.stderr)
        code = 130
    _settle_output()
    sys.exit(code)


def _settle_output() -> bool:
    """Return whether standard output takes what is left; else drop it, or exiting would fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    return True
