"""Errors that a user can act on, and the one place that turns them into an exit code."""

from __future__ import annotations

import difflib
import reprlib
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TextIO

from harl_fast.files import tell
from harl_fast.supervision import heeds_hangup

LONGEST = 4000
"""Most characters of an error that are printed: a message can hold what a file holds."""


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
    close = difflib.get_close_matches(name[:80], list(valid), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(text: str) -> str:
    """Return a text with everything that does not print as backslash escapes.

    Line breaks, terminal sequences, marks that turn the direction of writing, and bytes of file
    names that are not UTF-8 are such.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Brief(reprlib.Repr):
    """A repr that takes neither time nor memory by the size of its value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 76
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out whole numbers of over 4300 digits.
        return super().repr_int(x, level) if x.bit_length() < 1000 else "a huge number"


_BRIEF = _Brief()


def shown(value: object) -> str:
    """Return a value as it stands in messages: its repr on one line, of at most 80 characters."""
    text = one_line(_BRIEF.repr(value))
    return text if len(text) <= 80 else f"{text[:76]} ..."


class PlainStream:
    """A text stream through which nothing reaches the terminal but what prints.

    Other characters become backslash escapes, and so do those that the stream's encoding lacks;
    line breaks and tabs pass. A carriage return passes at either end of a text, where it moves
    over a progress line only.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write a text with escapes; return its length as it was."""
        if not (text.isprintable() and text.isascii()):
            core = text.strip("\r")
            head, _, tail = text.partition(core) if core else (text, "", "")
            plain = "".join(c if c in "\n\t" else one_line(c) for c in core)
            safe = plain.encode(self._encoding, "backslashreplace").decode(self._encoding)
            self._stream.write(f"{head}{safe}{tail}")
        else:
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # the stream's own
        return getattr(self._stream, name)


def _complain(message: str) -> None:
    """Print an error; further lines are indented, so that no part of it passes for another."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    first, *others = message.split("\n")
    text = "\n  ".join([f"error: {first}", *(line.strip() for line in others)])
    tell(f"{text}\n", sys.stderr)


def run_main(main: Callable[[], int]) -> None:
    """Run a program's main and exit: 2 on a `HarlError`, 130 on an interrupt, else its result.

    SIGTERM is an interrupt, and SIGHUP, a closed terminal, unless nohup had it ignored: temporary
    files are removed, and processes ended. Later ones do not disturb that.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # as it is where the shell closed it
            setattr(sys, name, PlainStream(stream))
    numbers = [signal.SIGTERM, *[signal.SIGHUP] * heeds_hangup()]

    def interrupt(_: int, frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        code = main()
    except HarlError as error:
        _complain(str(error))
        code = 2
    except KeyboardInterrupt:
        tell("interrupted: nothing was left under a final name\n", sys.stderr)
        code = 130
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    sys.exit(code)
