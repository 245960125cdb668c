"""Work for the processes of a pool; they import this file, and nothing that takes seconds."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np


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


def arrays(number: int) -> dict[str, Any]:
    """Return arrays of several types, sizes and layouts, and what is none."""
    numbers = np.arange(number, 1000 + number)
    frozen = np.frombuffer(b"frozen" * number, np.uint8)
    parts = [numbers.astype(kind) for kind in ("u1", "<f8", "?")]
    return {"parts": parts, "turned": numbers.reshape(8, -1).T, "frozen": frozen, "word": "x"}
