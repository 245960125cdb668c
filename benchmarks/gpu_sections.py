"""The sections of `make gpu-check`, and the process in which one of them runs.

`python -m benchmarks.gpu_sections NUMBER WORK '<settings JSON>'` prints one JSON object per finding
at once: a bar (a `report.Row`) or a fact. What libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from benchmarks.report import Row
from harl_fast.supervision import end_with_parent


@dataclass(frozen=True)
class Section:
    """One part of the check."""

    name: str
    work: str
    """Module and function, which takes `CheckSettings` and `Findings`."""
    limit_s: float
    gpus: int = 0
    """Fewest GPUs that it makes sense with; from 0 on it has a reduced form for CPUs."""
    fatal: bool = True
    """Whether a missed bar or a failure of it fails the check."""


SECTIONS = (
    Section("imports", "benchmarks.gpu_numbers:imports", 75),
    Section("numbers", "benchmarks.gpu_numbers:numbers", 45),
    Section("waits", "benchmarks.gpu_numbers:waits", 30),
    Section("step", "benchmarks.gpu_step:step", 90),
    Section("end to end", "benchmarks.gpu_runs:end_to_end", 110),
    Section("compile", "benchmarks.gpu_step:compiled", 90),
    Section("two ranks", "benchmarks.gpu_numbers:two_ranks", 40, fatal=False),
    Section("several GPUs", "benchmarks.gpu_runs:several", 240, gpus=2),
)
"""By number. All but the last fit into eight minutes together; that one is for other machines."""


@dataclass(frozen=True)
class CheckSettings:
    """What a section is told."""

    device: str
    """cuda, or cpu for the reduced form."""
    out: str
    """Folder of the check's results; it may leave its own files in ``work`` there."""
    data: str
    """Folder of containers; section 0 draws a demo set where there is none."""

    @property
    def small(self) -> bool:
        """Whether only the script is to be proven, by small networks on few images."""
        return self.device == "cpu"

    @property
    def work(self) -> Path:
        """Where sections put what they need, such as run folders."""
        return Path(self.out) / "work"


class Findings:
    """What a section finds, written line by line: a process that is killed has told the rest.

    timed: whether times and rates are held against their bars; on a CPU they say nothing.
    """

    def __init__(self, number: int, stream: TextIO, *, timed: bool) -> None:
        self._number, self._stream, self._timed = number, stream, timed

    def fact(self, name: str, value: object) -> None:
        """Note what is no measurement, such as a version."""
        self._write({"fact": name, "value": value})

    def note(self, what: str, measured: float, unit: str = "") -> None:
        """Note a figure without a bar."""
        self._row(Row(self._name, what, measured, unit))

    def at_most(
        self, what: str, measured: float, limit: float, unit: str = "", *, timing: bool = False
    ) -> None:
        """Hold a figure against a bar that it must not exceed. timing: see ``timed``."""
        bar = None if timing and not self._timed else limit
        self._row(Row(self._name, what, measured, unit, bar, less_is_better=True))

    def at_least(
        self, what: str, measured: float, limit: float, unit: str = "", *, timing: bool = False
    ) -> None:
        """Hold a figure against a bar that it must reach."""
        bar = None if timing and not self._timed else limit
        self._row(Row(self._name, what, measured, unit, bar))

    def holds(self, what: str, true: bool) -> None:
        """Hold what must be so: 1 if it is, else 0."""
        self._row(Row(self._name, what, float(true), "", 1.0))

    @property
    def _name(self) -> str:
        return str(self._number)

    def _row(self, row: Row) -> None:
        self._write({"row": asdict(row)})

    def _write(self, finding: dict[str, object]) -> None:
        self._stream.write(json.dumps(finding) + "\n")
        self._stream.flush()


def read_findings(path: Path) -> tuple[list[Row], dict[str, object]]:
    """Return the rows and facts that a section has written; a line that was cut is left out."""
    rows, facts = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            finding = json.loads(line)
        except ValueError:
            continue
        if "row" in finding:
            rows.append(Row(**finding["row"]))
        else:
            facts[finding["fact"]] = finding["value"]
    return rows, facts


def main() -> None:
    """Run one section."""
    end_with_parent(signal.SIGKILL)
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    number, settings = int(sys.argv[1]), CheckSettings(**json.loads(sys.argv[3]))
    module, _, name = sys.argv[2].partition(":")
    work = getattr(importlib.import_module(module), name)
    work(settings, Findings(number, lines, timed=not settings.small))
    sys.stderr.flush()
    os._exit(0)  # a loader's thread may be at work, and gloo's abort some orderly exits


if __name__ == "__main__":
    main()
