"""What ends a run between two steps, on all ranks after the same one: signals and a time limit."""

from __future__ import annotations

import enum
import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType

from harl_fast.supervision import Process, heeds_hangup

LOST = "lost: "
"""How the reason begins when a process that looks after the ranks is gone."""
_PERIOD_S = 1.0
"""Time between two looks at those processes, 20 us each."""
_DEAF_S = 10.0
"""How long a start, which has nothing to save, may take to notice that one of them is gone."""


class Wish(enum.IntEnum):
    """What a rank wants done after a step; the ranks do the largest of their wishes."""

    GO_ON = 0
    SAVE = 1
    LEAVE = 2
    """Save and leave with exit code 0: the machine is needed, or the time is over."""
    INTERRUPT = 3
    """Save and leave with exit code 130: the user ended the run."""


class Leaving(BaseException):
    """A signal other than SIGINT during the start, when there is nothing to save."""


class StopSignal:
    """Turns signals into a wish to save and leave.

    SIGTERM, SIGUSR1, and SIGHUP unless nohup had it ignored: leave with exit code 0. SIGINT: leave
    with 130; a second SIGINT, or one after another signal, raises KeyboardInterrupt at once. A
    second SIGTERM does not: DeepSpeed's launcher answers a signal to the process group, such as
    Ctrl-C, by sending each rank one more, and kills what has not left after 30 s.

    supervisors: processes whose end is taken for a SIGTERM: nobody would be left to end this one.
    """

    def __init__(self, *, supervisors: Mapping[str, Process] | None = None) -> None:
        self.number = 0
        self.starting = False
        """Raise Leaving or KeyboardInterrupt at once: a start may last longer than the 30 s."""
        self._before: dict[int, object] = {}
        self._supervisors = dict(supervisors or {})
        self._lost = ""
        self._over = threading.Event()

    @property
    def reason(self) -> str:
        """The signal's name, or which supervisor is gone; empty as long as there was neither."""
        return self._lost or (signal.Signals(self.number).name if self.number else "")

    @property
    def wish(self) -> Wish:
        """What the signal asks for."""
        if not self.number:
            return Wish.GO_ON
        return Wish.INTERRUPT if self.number == signal.SIGINT else Wish.LEAVE

    def __enter__(self) -> StopSignal:
        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        for number in [*numbers, *[signal.SIGHUP] * heeds_hangup()]:
            self._before[number] = signal.signal(number, self._note)
        if self._supervisors:
            threading.Thread(target=self._look, name="supervisors", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.number or self.starting):
            raise KeyboardInterrupt
        self.number = self.number or number
        if self.starting:
            self.starting = False  # a second one must not disturb the leaving
            raise Leaving

    def _look(self) -> None:
        while not self._over.is_set():
            for name, process in self._supervisors.items():
                if not process.alive():
                    if not self.number:
                        self._lost = f"{LOST}{name} (process {process.pid}) is gone"
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                    self._over.wait(_DEAF_S)
                    if self.starting:  # it waits, outside of Python, for ranks that have left
                        os._exit(1)
                    return
            self._over.wait(_PERIOD_S)
