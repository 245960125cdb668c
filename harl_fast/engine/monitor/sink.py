"""What a sink of a run's records is: console, metrics.jsonl, TensorBoard, run.json, or your own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harl_fast.engine.monitor.nonfinite import SkippedStep
from harl_fast.runfiles import RunFolder
from harl_fast.side import SideOutputs

State = Literal[
    "starting", "warming", "training", "probing", "saving", "finished", "preempted", "failed"
]
FINAL = ("finished", "preempted", "failed")
Figures = Mapping[str, float]
"""Values by the names that metrics.jsonl gives them; a value may be NaN."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink may know of its run from the start."""

    folder: RunFolder
    epochs: int = 0
    total: int = 0
    """Optimizer steps of the whole run."""
    first_step: int = 0
    """Steps done before this start."""
    batch_global: int = 1
    quiet: bool = False
    """Print warnings and one line per epoch only."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """The configurations by name."""
    hparams: Mapping[str, float | str | bool] = field(default_factory=dict)
    """The method's settings by dotted key."""


@dataclass(frozen=True)
class LogRecord:
    """What a log line tells."""

    figures: Figures
    ratios: Sequence[float] = ()
    """The last step's trust ratio of each tensor that LARS adapts."""
    ends_epoch: bool = False
    """Whether it is its epoch's last."""
    alarms: Collection[str] = ()
    """Kinds of the alarms that are on."""


@dataclass(frozen=True)
class Position:
    """Where the run is, between two records."""

    epoch: int
    """Under way, from 1."""
    step: int
    """Steps done."""
    img_s: float | None = None
    eta_s: float | None = None
    """Seconds to the end; None, as img_s, as long as nothing was timed."""


class Sink:
    """Receives what a run reports, on rank 0; a subclass overrides the methods that it needs.

    No method may raise because a file cannot be written, or the run ends: write through ``files``,
    which reports it and goes on. Add a sink to `sinks.SINKS` before the run is opened.
    """

    def __init__(self, run: RunInfo, files: SideOutputs) -> None:
        """Open it; the run folder exists."""
        self.run, self.files = run, files

    def write(self, record: LogRecord) -> None:
        """Receive what was measured since the last record."""

    def write_probe(self, figures: Figures) -> None:
        """Receive what an online probe found: epoch, step, probe_knn, probe_linear, probe_s."""

    def progress(self, progress: Position) -> None:
        """Receive where the run is, about twice a second; ask nothing of the device."""

    def state(self, state: State, reason: str = "") -> None:
        """Receive what the run is doing from now on."""

    def message(self, text: str) -> None:
        """Receive a line for the user."""

    def skipped(self, steps: Sequence[SkippedStep]) -> None:
        """Receive steps without effect."""

    def image(self, name: str, png: Path, *, step: int) -> None:
        """Receive a picture that was drawn."""

    def close(self) -> None:
        """End; the last state was final."""
