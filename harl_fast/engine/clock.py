"""Time limits: how long this process may still train, and when a checkpoint is due."""

from __future__ import annotations

import os
import time

from harl_fast.errors import shown
from harl_fast.options import to_float
from harl_fast.supervision import stat_fields

MARGIN_S = 10.0
"""What is left after the last save: for leaving, and for clocks that began before this process."""
_LONGEST_S = 10 * 365 * 86400.0
_SLOW_DISK = 50e6
"""Bytes a second that a checkpoint is assumed to be written with before one was."""


def parse_duration(text: str) -> float:
    """Return a duration in seconds. text: ``HH:MM:SS`` or minutes. Raises ValueError."""
    try:
        parts = [to_float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or min(parts) < 0.0:
        raise ValueError(f"{shown(text)} is neither HH:MM:SS nor minutes")
    hours, minutes, seconds = parts if len(parts) == 3 else (0.0, parts[0], 0.0)
    total_s = 3600.0 * hours + 60.0 * minutes + seconds
    if not 0.0 < total_s <= _LONGEST_S:
        raise ValueError(f"{shown(text)} is no time above 0 and up to ten years")
    return total_s


def process_age_s() -> float:
    """Return the seconds since this process was started; imports and set-up count."""
    started_s = int(stat_fields("self")[19]) / os.sysconf("SC_CLK_TCK")  # since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


class TimeLimit:
    """Says when to save and leave so that both are done before a batch system's limit.

    limit_s: of this process's age; None for none. state_bytes: size of a checkpoint, from which
    the time of the first save is guessed.
    """

    def __init__(self, limit_s: float | None, *, state_bytes: int = 0) -> None:
        self._limit_s = limit_s
        self.passed = False
        """Whether `reached` has said so."""
        self._save_s = state_bytes / _SLOW_DISK
        self._measured = False
        self._step_s = 0.0
        self._last: float | None = None

    def saved(self, seconds: float) -> None:
        """Learn how long a save took, its writing included."""
        self._save_s = max(seconds, self._save_s if self._measured else 0.0)
        self._measured = True

    def reached(self) -> bool:
        """Return whether this is the last step to do; call after each.

        Left are then one and a half saves of the longest so far, two steps of the longest of late,
        and a margin.
        """
        if self._limit_s is None:
            return False
        age = process_age_s()
        if self._last is not None:  # the first call follows start-up and compilation
            self._step_s = max(age - self._last, 0.9 * self._step_s)
        self._last = age
        left_s = self._limit_s - age
        self.passed = left_s <= 2.0 * self._step_s + 1.5 * self._save_s + MARGIN_S
        return self.passed
