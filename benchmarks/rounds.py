"""Long-lived contenders in processes of their own, run in turns; idle ones are stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.process import busy_s, group_s
from harl_fast.files import Progress


class ContenderError(Exception):
    """A contender's process ended; its log says why."""


class Contender:
    """One contender's process group. It only ever runs between a command and its answer."""

    def __init__(self, name: str, settings: Mapping[str, Any], *, threads: int, log: Path) -> None:
        self.name, self.settings, self.log = name, dict(settings), log
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": str(threads)}
        environment |= self.settings.pop("environment", {})
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(self.settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
                start_new_session=True,  # a group of its own, with the workers it starts
            )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Wake the group, wait for one command's answer, and stop the group again.

        Adds ``others``: cores that the rest of the machine kept busy meanwhile.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        busy, own, begun = busy_s(), group_s(self.process.pid), time.monotonic()
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderError(f"{self.name} ended with {self.process.wait()}; see {self.log}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        passed = time.monotonic() - begun
        others = (busy_s() - busy) - (group_s(self.process.pid) - own)
        answer["others"] = round(max(0.0, others / passed), 3)
        return answer

    def close(self) -> None:
        """End the whole group."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Field:
    """All contenders of one run. Those that cannot start are left out with a message."""

    def __init__(
        self, plans: Mapping[str, Mapping[str, Any]], *, threads: int, logs: Path, warm_s: float
    ) -> None:
        self.contenders: dict[str, Contender] = {}
        self.failed: dict[str, str] = {}
        try:
            with Progress(len(plans), label="warm-up", unit="contenders") as progress:
                for name, settings in plans.items():
                    contender = Contender(name, settings, threads=threads, log=logs / f"{name}.log")
                    self.contenders[name] = contender
                    try:
                        contender.ask(do="run", seconds=warm_s)
                    except ContenderError as error:
                        self.failed[name] = str(error)
                        print(f"note: {error}", flush=True)
                        self.contenders.pop(name).close()
                    progress.advance()
        except BaseException:
            self.close()
            raise

    def rounds(self, count: int, *, seconds: float) -> dict[str, list[dict[str, float]]]:
        """Return each contender's answers of ``count`` rounds A B C A B C."""
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in self.contenders}
        turns = count * len(self.contenders)
        with Progress(turns, label="rounds", unit="turns") as progress:
            for _ in range(count):
                for name, contender in self.contenders.items():
                    answers[name].append(contender.ask(do="run", seconds=seconds))
                    progress.advance()
        return answers

    def close(self) -> None:
        """End all processes."""
        for contender in self.contenders.values():
            contender.close()

    def __enter__(self) -> Field:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
