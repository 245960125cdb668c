"""What ends a run between two steps, on all ranks after the same one: signals and a time limit."""

from __future__ import annotations

import enum
import signal
from types import FrameType, TracebackType


class Wish(enum.IntEnum):
    """What a rank wants done after a step; the ranks do the largest of their wishes."""

    GO_ON = 0
    SAVE = 1
    LEAVE = 2
    """Save and leave with exit code 0: the machine is needed, or the time is over."""
    INTERRUPT = 3
    """Save and leave with exit code 130: the user ended the run."""


class Leaving(BaseException):
    """SIGTERM or SIGUSR1 during the start, when there is nothing to save."""


class StopSignal:
    """Turns SIGTERM, SIGUSR1 and SIGINT into a wish to save and leave; a second SIGINT interrupts.

    A second SIGTERM does not: DeepSpeed's launcher answers a signal to the process group, such as
    Ctrl-C, by sending each rank one more, and kills what has not left after 30 s.
    """

    def __init__(self) -> None:
        self.number = 0
        self.starting = False
        """Raise Leaving or KeyboardInterrupt at once: a start may last longer than the 30 s."""
        self._before: dict[int, object] = {}

    @property
    def name(self) -> str:
        """The signal's name; empty if there was none."""
        return signal.Signals(self.number).name if self.number else ""

    @property
    def wish(self) -> Wish:
        """What the signal asks for."""
        if not self.number:
            return Wish.GO_ON
        return Wish.INTERRUPT if self.number == signal.SIGINT else Wish.LEAVE

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.number or self.starting):
            raise KeyboardInterrupt
        self.number = self.number or number
        if self.starting:
            self.starting = False  # a second one must not disturb the leaving
            raise Leaving
