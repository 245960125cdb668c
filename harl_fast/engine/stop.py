"""Signals that end a run between two steps, on all ranks after the same one."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from harl_fast.engine.ds import any_rank


class StopSignal:
    """Turns SIGTERM and SIGINT into a request to save and leave; a second SIGINT interrupts.

    A second SIGTERM does not: DeepSpeed's launcher answers a signal to the process group, such as
    Ctrl-C, by sending each rank one more, and kills what has not left after 30 s.
    """

    def __init__(self) -> None:
        self.number = 0
        self.agreed = False
        """Whether all ranks know of it, so that all leave after the same step."""
        self._before: dict[int, object] = {}

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else "another rank's signal"

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
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
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    def agree(self) -> bool:
        """Return whether any rank got a signal; all ranks must call it."""
        self.agreed = any_rank(self.number > 0)
        return self.agreed
