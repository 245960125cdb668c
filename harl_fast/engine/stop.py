"""What ends a run between two steps, on all ranks after the same one: signals and a time limit."""

from __future__ import annotations

import enum
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from harl_fast import supervision
from harl_fast.errors import shown
from harl_fast.options import to_float
from harl_fast.supervision import Process, heeds_hangup, stat_fields

LOST = "lost: "
"""How the reason begins when a process that looks after the ranks is gone."""
MARGIN_S = 10.0
"""What is left after the last save: for leaving, and for clocks that began before this process."""
LOOK_S = 1.0
"""Between two looks for a file: on a file server they take time."""
_LONGEST_S = 10 * 365 * 86400.0
_SLOW_DISK = 50e6
"""Bytes a second that a checkpoint is assumed to be written with before one was."""


class StopAction(enum.IntEnum):
    """What a rank wants done after a step; all ranks do the largest that any of them wants."""

    CONTINUE = 0
    SAVE = 1
    LEAVE = 2
    """Save and leave with exit code 0: the machine is needed, or the time is over."""
    INTERRUPT = 3
    """Save and leave with exit code 130: the user ended the run."""


class Leaving(BaseException):
    """A signal other than SIGINT during the start, when there is nothing to save."""


class StopSignal:
    """Turns signals into a `StopAction`: save and leave.

    SIGTERM, SIGUSR1, and SIGHUP unless nohup had it ignored: leave with exit code 0. SIGINT: leave
    with 130; a second SIGINT, or one after another signal, raises KeyboardInterrupt at once. A
    second SIGTERM does not: DeepSpeed's launcher answers a signal to the process group, such as
    Ctrl-C, by sending each rank one more, and kills what has not left after 30 s.

    supervisors: processes whose end is taken for a SIGTERM: nobody would be left to end this one.
    """

    def __init__(self, *, supervisors: Mapping[str, Process] | None = None) -> None:
        self.number = 0
        self.starting = False
        """Whether Leaving or KeyboardInterrupt is raised at once: a start may last longer than the
        30 s."""
        self._before: dict[int, object] = {}
        self._watch = supervision.watching(supervisors or {}, lost=self._leave)
        self._cause = ""
        self._looked_s = -LOOK_S

    @property
    def reason(self) -> str:
        """The signal's name, or what stands for one; empty as long as there was neither."""
        return self._cause or (signal.Signals(self.number).name if self.number else "")

    @property
    def action(self) -> StopAction:
        """What the signal asks for."""
        if not self.number:
            return StopAction.CONTINUE
        return StopAction.INTERRUPT if self.number == signal.SIGINT else StopAction.LEAVE

    def __enter__(self) -> StopSignal:
        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        for number in [*numbers, *[signal.SIGHUP] * heeds_hangup()]:
            self._before[number] = signal.signal(number, self._note)
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(None, None, None)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Be `starting`: raise for a signal from now on, and for one that came before."""
        self.starting = True
        if self.number:
            self._note(self.number, None)

    def look(self, *files: Path) -> None:
        """Take a file for a SIGUSR1, for where none comes; they are looked for once a second."""
        if self.number or time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        for file in filter(os.path.exists, files):  # no error where a file server does not answer
            self.number, self._cause = signal.SIGUSR1, f"the file {file.name}"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.number or self.starting):
            raise KeyboardInterrupt
        self.number = self.number or number
        if self.starting:
            self.starting = False  # a second one must not disturb the leaving
            raise Leaving

    def _leave(self, name: str, process: Process) -> None:
        if not self.number:
            self._cause = f"{LOST}{name} (process {process.pid}) is gone"
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(supervision.DEAF_S)
        if self.starting:  # it waits, outside of Python, for ranks that have left
            os._exit(1)


def parse_duration(text: str) -> float:
    """Return a duration in seconds. text: ``HH:MM:SS`` or minutes. Raises ValueError.

    Before the colons stand any number of hours, behind them below 60.
    """
    try:
        parts = [to_float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or any(math.copysign(1, part) < 0 for part in parts):
        raise ValueError(f"{shown(text)} is neither HH:MM:SS nor minutes")
    hours, minutes, seconds = parts if len(parts) == 3 else (0.0, parts[0], 0.0)
    if len(parts) == 3 and max(minutes, seconds) >= 60.0:
        raise ValueError(f"{shown(text)} has over 59 minutes or seconds: hours alone may be more")
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
