"""What a run tells: log and progress line, metrics.jsonl, TensorBoard, run.json; on rank 0 only."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from harl_fast.engine.monitor.alarms import Health, Supply
from harl_fast.engine.monitor.nonfinite import NoEffect
from harl_fast.engine.monitor.status import FINAL, RunStatus, State
from harl_fast.engine.monitor.tensorboard import Board
from harl_fast.engine.runfolder import RunFolder
from harl_fast.engine.side import SideOutputs
from harl_fast.files import LiveLine, format_seconds, tell
from harl_fast.model.loss import term_keys

_LINE_PERIOD_S = 0.5


def log_line(record: Mapping[str, float], *, epochs: int) -> str:
    """Return a record as one line of ``key value`` pairs in fixed order."""
    terms = [f"{key[5:]} {record[key]:.4f}" for key in term_keys() if key in record]
    return (
        f"epoch {record['epoch']:.0f}/{epochs} step {record['step']:.0f}  "
        f"loss {record['loss']:.4f}{' (' + ' '.join(terms) + ')' if terms else ''}  "
        f"img_s {record['img_s']:.0f}  wait {record['wait_worst']:.1%}  "
        f"z_std {record['z_std']:.2f}  fg {record['fg']:.1%}  empty {record['empty']:.1%}  "
        f"lr {record['lr']:.4g}  tau {record['tau']:.5f}  eta {format_seconds(record['eta_s'])}"
    )


class Reporter:
    """Writes each record everywhere and raises alarms; a silent one serves the other ranks.

    What cannot be written, on a full disk for instance, is told and left out: training goes on.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        epochs: int,
        silent: bool,
        first_step: int = 0,
        total: int = 0,
        batch: int = 1,
        quiet: bool = False,
        supply: Supply | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """total: steps of the run. batch: images of a step. texts: for TensorBoard, by name.

        quiet: print one line an epoch instead of every record's, and what `say` is given.
        """
        self._folder, self._epochs, self._silent = folder, epochs, silent
        self._first_step, self._total, self._batch, self._quiet = first_step, total, batch, quiet
        self._health = Health(supply)
        self._line = LiveLine(sys.stderr)
        self._texts = dict(texts or {})
        self._board: Board | None = None
        self._status: RunStatus | None = None
        self._loss, self._eta_s = math.nan, math.nan
        self._mark: tuple[int, float] | None = None  # a step, and when it was done
        self._ticked = 0.0
        self.side = SideOutputs(self.say)
        self._sums: dict[str, float] = {}  # of the epoch's records, weighted by their steps

    def __enter__(self) -> Reporter:
        if not self._silent:
            self._board = Board(self._folder.tensorboard, self.side, first_step=self._first_step)
            for name, text in self._texts.items():
                self._board.text(name, text)
            latest = self._folder.checkpoints / "latest"
            self._status = RunStatus(self._folder.status, self.side, latest=latest)
            self._status.update(epochs=self._epochs, total=self._total, step=self._first_step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            if kind is not None:
                interrupted = issubclass(kind, KeyboardInterrupt)
                why = "interrupted twice" if interrupted else f"{kind.__name__}: {error}"
                self._status.set("failed", reason=why)
            elif self._status.state not in FINAL:
                self._status.set("preempted", reason="the run was left before its end")
        self._line.clear()

    def say(self, text: str) -> None:
        """Print a line, also when quiet: a warning, or what ends the run."""
        if not self._silent:
            self._line.clear()
            tell(f"{text}\n", sys.stderr)

    def note(self, text: str) -> None:
        """Print a line unless quiet."""
        if not self._quiet:
            self.say(text)

    def state(self, state: State, *, reason: str = "") -> None:
        """Tell `run.json` what the run is doing."""
        if self._status is not None:
            self._status.set(state, reason=reason)
            self._mark = None  # what lies between does not count as training

    def tick(self, *, epoch: int, step: int) -> None:
        """Note that a step is done; redraw the progress line and run.json when that is due.

        Nothing is asked of the device: loss is the last record's.
        """
        now = time.monotonic()
        if self._status is None or now - self._ticked < _LINE_PERIOD_S:
            return
        self._ticked = now
        if self._status.state != "training":
            self._status.set("training")
        # What came before the first step's end was start-up and says nothing of the speed.
        self._mark = self._mark or (step, now)
        before, then = self._mark
        if step == before:
            self._status.update(epoch=epoch, step=step)
            return
        rate = (step - before) / max(now - then, 1e-9) * self._batch
        eta_s = self._eta_s - (now - then)
        if not math.isfinite(eta_s):
            eta_s = (self._total - step) * self._batch / max(rate, 1e-9)
        self._status.update(epoch=epoch, step=step, img_s=rate, eta_s=max(eta_s, 0.0))
        if not self._quiet:
            loss = f"loss {self._loss:.4f}  " if math.isfinite(self._loss) else ""
            self._line.show(
                f"epoch {epoch}/{self._epochs} step {step:,}/{self._total:,}  {loss}"
                f"{rate:,.0f} images/s  eta {format_seconds(max(eta_s, 0.0))}"
            )

    def write(
        self,
        record: Mapping[str, float],
        *,
        ratios: Sequence[float] = (),
        ends_epoch: bool = False,
    ) -> None:
        """Write a log record everywhere and check its health.

        ratios: of all tensors that LARS adapts. ends_epoch: it is its epoch's last.
        """
        if self._board is None or self._status is None:
            return
        step = int(record["step"])
        self._loss, self._eta_s = record["loss"], record["eta_s"]
        self._mark = (step, time.monotonic())
        self.note(log_line(record, epochs=self._epochs))
        if self._quiet:
            self._summarise(record, ends_epoch=ends_epoch)
        self._keep(record, ratios=ratios)
        for message in self._health.check(record):
            self.say(message)
        if self._status.state != "training":
            self._status.set("training")
        self._status.update(
            warnings=sorted(self._health.on),
            **{key: record[key] for key in ("epoch", "step", "img_s", "eta_s")},
            loss=record["loss"] if math.isfinite(record["loss"]) else None,
        )

    def write_probe(self, record: Mapping[str, float], *, text: str) -> None:
        """Write what an online probe found, fields of a record of its own, and print the text."""
        if self._board is not None:
            self._keep(record)
            self.say(text)

    def _summarise(self, record: Mapping[str, float], *, ends_epoch: bool) -> None:
        """Add a record to its epoch's means; print them as a log line at its end."""
        means = ("loss", *term_keys(), "img_s", "wait_worst", "fg", "empty")
        for key in ("steps", *(key for key in means if key in record)):
            value = record[key] * (1 if key == "steps" else record["steps"])
            self._sums[key] = self._sums.get(key, 0.0) + value
        if ends_epoch:
            steps = self._sums.pop("steps")
            mean = {key: value / steps for key, value in self._sums.items()}
            self.say(log_line({**record, **mean}, epochs=self._epochs))
            self._sums = {}

    def picture(self, name: str, png: Path, *, step: int, draw: Callable[[], None]) -> None:
        """Let ``draw`` write a PNG file, and add that to TensorBoard."""

        def work() -> None:
            png.parent.mkdir(exist_ok=True)  # but not the run folder
            draw()

        if self._board is not None and self.side.write(png.parent, work):
            self._board.picture(name, png, step=step)

    def no_effect(self, steps: Sequence[NoEffect]) -> None:
        """Tell of steps without effect, and append their samples to skipped.jsonl."""
        if self._silent or not steps:
            return
        lines = "".join(json.dumps(dataclasses.asdict(step)) + "\n" for step in steps)
        kept = self.side.append(self._folder.skipped, lines.encode())
        where = f"; the samples' ids are in {self._folder.skipped}"
        self.say(
            f"no effect: step {', '.join(str(step.step) for step in steps[:5])}"
            f"{' ...' * (len(steps) > 5)}: loss or gradient not finite"
            f"{where * kept}"
        )

    def _keep(self, record: Mapping[str, float], *, ratios: Sequence[float] = ()) -> None:
        """Append a record to metrics.jsonl and add it to TensorBoard."""
        assert self._board is not None
        # JSON has no NaN; null is what other programs read.
        finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
        line = json.dumps(finite, allow_nan=False) + "\n"
        self.side.append(self._folder.metrics, line.encode())
        self._board.record(record, step=int(record["step"]), ratios=ratios)
