"""What a run tells: the log line, the same record as JSON, and TensorBoard; on rank 0 only."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from harl_fast.engine.health import Health
from harl_fast.engine.runfolder import RunFolder
from harl_fast.files import format_seconds

_BOARD = {
    "loss": "loss/total",
    "loss/whole": "loss/whole",
    "loss/fg": "loss/fg",
    "loss/bg": "loss/bg",
    "lr": "schedule/lr",
    "tau": "schedule/tau",
    "alpha": "schedule/alpha",
    "beta": "schedule/beta",
    "grad_norm": "health/grad_norm",
    "z_std": "health/z_std",
    "fg": "health/foreground",
    "empty": "health/empty",
    "skipped": "health/skipped",
    "loss_scale": "health/loss_scale",
    "img_s": "speed/images_per_s",
    "wait": "speed/wait",
}
"""TensorBoard's name of each field of a record."""


def log_line(record: Mapping[str, float], *, epochs: int) -> str:
    """Return a record as one line of ``key value`` pairs in fixed order."""
    return (
        f"epoch {record['epoch']:.0f}/{epochs} step {record['step']:.0f}  "
        f"loss {record['loss']:.4f}  img_s {record['img_s']:.0f}  wait {record['wait']:.1%}  "
        f"z_std {record['z_std']:.2f}  fg {record['fg']:.1%}  empty {record['empty']:.1%}  "
        f"lr {record['lr']:.4g}  tau {record['tau']:.5f}  eta {format_seconds(record['eta_s'])}"
    )


class Reporter:
    """Writes each record everywhere and raises alarms; a silent one serves the other ranks."""

    def __init__(
        self, folder: RunFolder, *, epochs: int, silent: bool, first_step: int = 0
    ) -> None:
        self._folder, self._epochs, self._silent = folder, epochs, silent
        self._first_step = first_step
        self._health = Health()
        self._board: SummaryWriter | None = None

    def __enter__(self) -> Reporter:
        if not self._silent:
            # Points after the step that a resumed run starts from are hidden: they come again.
            self._board = SummaryWriter(
                str(self._folder.tensorboard), purge_step=self._first_step + 1
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._silent:
            print(text, file=sys.stderr, flush=True)

    def write(self, record: Mapping[str, float]) -> None:
        """Print a log record, add it to metrics.jsonl and to TensorBoard, and check its health."""
        if self._board is None:
            return
        self.say(log_line(record, epochs=self._epochs))
        # JSON has no NaN; null is what other programs read.
        finite = {key: value if math.isfinite(value) else None for key, value in record.items()}
        with open(self._folder.metrics, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite, allow_nan=False) + "\n")
        step = int(record["step"])
        for key, name in _BOARD.items():
            if key in record:
                self._board.add_scalar(name, record[key], step)
        for message in self._health.check(record):
            self.say(message)
