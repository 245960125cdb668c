"""Work for the processes of a pool; they import this file, and nothing that takes seconds."""

from __future__ import annotations

import gc
import os
import signal
import time


def double(number: int) -> int:
    """Return twice a number; raise or die on the numbers that ask for it."""
    if number == 666:
        raise ValueError("the number of the beast")
    if number == 777:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def large(number: int) -> bytes:
    """Return an answer that no pipe holds at once."""
    return bytes(10_000_000 + number)


def getpid(number: int) -> int:
    """Return the process that was asked."""
    time.sleep(0.01)
    return os.getpid()


def frozen(number: int) -> tuple[int, int]:
    """Return how many objects no collection looks at, and how many a full one does."""
    return gc.get_freeze_count(), len(gc.get_objects())


def keep(number: int) -> tuple[int, tuple[int, int]]:
    """Return this process, and for `note` what stays in it."""
    return os.getpid(), (os.getpid(), number)


def note(kept: tuple[int, int], word: tuple[str, int, int] | None) -> None:
    """Make a file in a folder, for a number and the process that kept it; die without a word."""
    if word is None:
        os.kill(os.getpid(), signal.SIGKILL)
    assert word is not None
    folder, number, pid = word
    here = os.getpid() == pid and kept == (pid, number)
    with open(f"{folder}/{number}", "x", encoding="utf-8") as stream:
        stream.write("kept here" if here else f"{kept} was kept")
