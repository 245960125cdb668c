"""Where a run's records go: the table of sinks, and the one that feeds them all."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harl_fast.engine.monitor.alarms import Health, Supply
from harl_fast.engine.monitor.nonfinite import SkippedStep
from harl_fast.engine.monitor.runjson import RunJson
from harl_fast.engine.monitor.sink import FINAL, Figures, LogRecord, Position, RunInfo, Sink, State
from harl_fast.engine.monitor.tensorboard import TensorBoard
from harl_fast.files import LiveLine, format_seconds, to_stderr
from harl_fast.side import SideOutputs

_PROGRESS_PERIOD_S = 0.5


_SHOWN = {
    "top1": ".1%",
    "img_s": ".0f",
    "wait_worst": ".1%",
    "z_std": ".2f",
    "h_rank": ".0f",
    "fg": ".1%",
    "empty": ".1%",
    "lr": ".4g",
    "tau": ".5f",
}
"""Figures of a log line after the loss, in this order, and how each is written."""


def log_line(record: Figures, *, epochs: int) -> str:
    """Return a record as one line of ``key value`` pairs in fixed order."""
    terms = [f"{key[5:]} {value:.4f}" for key, value in record.items() if key.startswith("loss/")]
    parts = [
        f"epoch {record['epoch']:.0f}/{epochs} step {record['step']:.0f}",
        f"loss {record['loss']:.4f}{' (' + ' '.join(terms) + ')' if terms else ''}",
    ]
    parts += [f"{key} {record[key]:{form}}" for key, form in _SHOWN.items() if key in record]
    text = "  ".join([*parts, f"eta {format_seconds(record['eta_s'])}"])
    return text.replace("wait_worst", "wait")


class Console(Sink):
    """Log lines, messages, and on a terminal a progress line below them, all on stderr."""

    def __init__(self, run: RunInfo, files: SideOutputs) -> None:
        super().__init__(run, files)
        self._line = LiveLine(sys.stderr)
        self._loss = math.nan
        self._sums: dict[str, float] = {}  # of the epoch's records, weighted by their steps

    def write(self, record: LogRecord) -> None:
        """Print the record; when quiet, the epoch's means at its end."""
        figures = record.figures
        self._loss = figures["loss"]
        if not self.run.quiet:
            self.message(log_line(figures, epochs=self.run.epochs))
            return
        means = {"loss", "top1", "img_s", "wait_worst", "fg", "empty"}
        for key, value in figures.items():
            if key in means or key.startswith("loss/"):
                self._sums[key] = self._sums.get(key, 0.0) + value * figures["steps"]
        self._sums["steps"] = self._sums.get("steps", 0) + figures["steps"]
        if record.ends_epoch:
            steps = self._sums.pop("steps")
            mean = {key: value / steps for key, value in self._sums.items()}
            self.message(log_line({**figures, **mean}, epochs=self.run.epochs))
            self._sums = {}

    def write_probe(self, figures: Figures) -> None:
        """Print it, also when quiet."""
        self.message(
            f"epoch {figures['epoch']:.0f}/{self.run.epochs} probe  "
            f"k-NN {figures['probe_knn']:.1f}%  linear {figures['probe_linear']:.1f}%  "
            f"({format_seconds(figures['probe_s'])})"
        )

    def progress(self, progress: Position) -> None:
        """Draw the progress line; the loss is the last record's."""
        if self.run.quiet or progress.img_s is None or progress.eta_s is None:
            return
        loss = f"loss {self._loss:.4f}  " if math.isfinite(self._loss) else ""
        self._line.show(
            f"epoch {progress.epoch}/{self.run.epochs} step {progress.step:,}/{self.run.total:,}  "
            f"{loss}{progress.img_s:,.0f} images/s  eta {format_seconds(progress.eta_s)}"
        )

    def message(self, text: str) -> None:
        """Print a line."""
        self._line.clear()
        to_stderr(text)

    def close(self) -> None:
        """Clear the progress line."""
        self._line.clear()


class Jsonl(Sink):
    """``metrics.jsonl``, one JSON object per record; ``skipped.jsonl``, one per skipped step."""

    def write(self, record: LogRecord) -> None:
        """Append the record to metrics.jsonl."""
        self.write_probe(record.figures)

    def write_probe(self, figures: Figures) -> None:
        """Append them to metrics.jsonl."""
        # JSON has no NaN; null is what other programs read.
        finite = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        line = json.dumps(finite, allow_nan=False) + "\n"
        self.files.append(self.run.folder.metrics, line.encode())

    def skipped(self, steps: Sequence[SkippedStep]) -> None:
        """Append the steps and their samples to skipped.jsonl."""
        lines = "".join(json.dumps(dataclasses.asdict(step)) + "\n" for step in steps)
        self.files.append(self.run.folder.skipped, lines.encode())


SINKS: dict[str, type[Sink]] = {
    "console": Console,
    "jsonl": Jsonl,
    "tensorboard": TensorBoard,
    "run.json": RunJson,
}
"""Classes that receive a run's records, in this order. Add your own before a run is opened."""


class Sinks:
    """Forwards records to all of `SINKS`; silent on ranks other than 0.

    What cannot be written, on a full disk for instance, is told and left out: training goes on.
    """

    def __init__(self, run: RunInfo, *, silent: bool = False, supply: Supply | None = None) -> None:
        """supply: how images come, for the alarms' remedies."""
        self.run, self._silent = run, silent
        self.files = SideOutputs(self.warn)
        self._sinks: list[Sink] = []
        self._health = Health(supply)
        self._state: State = "starting"
        self._eta_s = math.nan
        self._mark: tuple[int, float] | None = None  # a step, and when it was done
        self._ticked = 0.0

    def __enter__(self) -> Sinks:
        if not self._silent:
            self._sinks = [sink(self.run, self.files) for sink in SINKS.values()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            interrupted = issubclass(kind, KeyboardInterrupt)
            why = "interrupted twice" if interrupted else f"{kind.__name__}: {error}"
            self.state("failed", reason=why)
        elif self._state not in FINAL:
            self.state("preempted", reason="the run was left before its end")
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def warn(self, text: str) -> None:
        """Print a line, also when quiet."""
        for sink in self._sinks:
            sink.message(text)
        if not self._sinks and not self._silent:  # not open yet, or closed
            to_stderr(text)

    def info(self, text: str) -> None:
        """Print a line unless quiet."""
        if not self.run.quiet:
            self.warn(text)

    def state(self, state: State, *, reason: str = "") -> None:
        """Tell what the run is doing; a final state stays."""
        self._mark = None  # what lies between does not count as training
        self._change(state, reason)

    def _change(self, state: State, reason: str = "") -> None:
        if self._state not in FINAL:
            self._state = state
            for sink in self._sinks:
                sink.state(state, reason)

    def progress(self, *, epoch: int, step: int) -> None:
        """Note that a step of ``epoch`` (from 1) is done; tell the sinks when that is due.

        Nothing is asked of the device.
        """
        now = time.monotonic()
        if not self._sinks or now - self._ticked < _PROGRESS_PERIOD_S:
            return
        self._ticked = now
        if self._state != "training":
            self._change("training")
        # What came before the first step's end was start-up and says nothing of the speed.
        self._mark = self._mark or (step, now)
        before, then = self._mark
        progress = Position(epoch, step)
        if step > before:
            rate = (step - before) / max(now - then, 1e-9) * self.run.batch_global
            eta_s = self._eta_s - (now - then)
            if not math.isfinite(eta_s):
                eta_s = (self.run.total - step) * self.run.batch_global / max(rate, 1e-9)
            progress = Position(epoch, step, rate, max(eta_s, 0.0))
        for sink in self._sinks:
            sink.progress(progress)

    def write(
        self, figures: Figures, *, ratios: Sequence[float] = (), ends_epoch: bool = False
    ) -> None:
        """Write a log record and raise its alarms."""
        if not self._sinks:
            return
        self._eta_s, self._mark = figures["eta_s"], (int(figures["step"]), time.monotonic())
        if self._state != "training":
            self._change("training")
        messages = self._health.check(figures)
        record = LogRecord(figures, ratios, ends_epoch, frozenset(self._health.on))
        for sink in self._sinks:
            sink.write(record)
        for message in messages:
            self.warn(message)

    def write_probe(self, figures: Figures) -> None:
        """Write what an online probe found."""
        for sink in self._sinks:
            sink.write_probe(figures)

    def skipped(self, steps: Sequence[SkippedStep]) -> None:
        """Tell of steps without effect."""
        if not steps or not self._sinks:
            return
        for sink in self._sinks:
            sink.skipped(steps)
        path = self.run.folder.skipped
        where = "" if self.files.lost(path) else f"; the samples' ids are in {path}"
        self.warn(
            f"no effect: step {', '.join(str(step.step) for step in steps[:5])}"
            f"{' ...' * (len(steps) > 5)}: loss or gradient not finite{where}"
        )

    def image(self, name: str, png: Path, *, step: int, draw: Callable[[], None]) -> None:
        """Let ``draw`` write a PNG file, and hand that on."""

        def work() -> None:
            png.parent.mkdir(exist_ok=True)  # but not the run folder
            draw()

        if self._sinks and self.files.write(png.parent, work):
            for sink in self._sinks:
                sink.image(name, png, step=step)
