"""Errors that a user can act on, and the one place that turns them into an exit code."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType

from harl_fast.files import tell
from harl_fast.supervision import heeds_hangup


class HarlError(Exception):
    """A failure whose message says what was found, where, and what to do."""


class ConfigError(HarlError):
    """A configuration file, key or combination that cannot be used."""


class DataError(HarlError):
    """A data set, container or sample that cannot be used."""


class CheckpointError(HarlError):
    """A checkpoint or run folder that cannot be used."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def run_main(main: Callable[[], int]) -> None:
    """Run a program's main and exit: 2 on a `HarlError`, 130 on an interrupt, else its result.

    SIGTERM is an interrupt, and SIGHUP, a closed terminal, unless nohup had it ignored: temporary
    files are removed, and processes ended. Later ones do not disturb that.
    """
    numbers = [signal.SIGTERM, *[signal.SIGHUP] * heeds_hangup()]

    def interrupt(_: int, frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        code = main()
    except HarlError as error:
        tell(f"error: {error}\n", sys.stderr)
        code = 2
    except KeyboardInterrupt:
        tell("interrupted: nothing was left under a final name\n", sys.stderr)
        code = 130
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    sys.exit(code)
