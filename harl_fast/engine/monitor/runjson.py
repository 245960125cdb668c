"""``run.json``: what a run is doing, for other programs to poll."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from typing import Any

from harl_fast.engine.monitor.sink import LogRecord, Position, RunInfo, Sink, State
from harl_fast.host import utc_time
from harl_fast.side import SideOutputs

PERIOD_S = 2.0
"""Shortest time between two writings that are not about another state."""


class RunJson(Sink):
    """Keeps a small JSON file current; it is replaced whole, so a reader never sees half of it.

    Keys: ``state`` (see `State`), ``reason`` (of a failure), ``epoch`` (under way, from 1),
    ``epochs``, ``step`` (done), ``total``, ``img_s``, ``eta_s``, ``loss``, ``last_checkpoint``
    (name, null before the first), ``warnings`` (kinds of the alarms that are on), ``started`` and
    ``updated`` (Unix seconds; ``updated_utc`` is the same as text), ``pid`` and ``host``. A process
    that was killed leaves its last state: a reader should distrust an ``updated`` that is old.
    """

    def __init__(self, run: RunInfo, files: SideOutputs) -> None:
        super().__init__(run, files)
        self._fields: dict[str, Any] = {
            "state": "starting",
            "reason": "",
            "epoch": 0,
            "epochs": run.epochs,
            "step": run.first_step,
            "total": run.total,
            "img_s": None,
            "eta_s": None,
            "loss": None,
            "last_checkpoint": None,
            "warnings": [],
            "started": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._write()

    def state(self, state: State, reason: str = "") -> None:
        """Change the state and write the file."""
        self._fields |= {"state": state, "reason": reason}
        self._write()

    def write(self, record: LogRecord) -> None:
        """Receive the record's figures and alarms."""
        figures = record.figures
        self._update(
            warnings=sorted(record.alarms),
            **{key: figures[key] for key in ("epoch", "step", "img_s", "eta_s")},
            loss=figures["loss"] if math.isfinite(figures["loss"]) else None,
        )

    def progress(self, progress: Position) -> None:
        """Receive step and speed."""
        timed = {"img_s": progress.img_s, "eta_s": progress.eta_s} if progress.img_s else {}
        self._update(epoch=progress.epoch, step=progress.step, **timed)

    def _update(self, **fields: Any) -> None:
        """Change fields; the file is written when that is due again."""
        self._fields |= fields
        if time.monotonic() - self._written >= PERIOD_S:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self.files.write(self.run.folder.status, self._replace)

    def _replace(self) -> None:
        path, latest, now = (
            self.run.folder.status,
            self.run.folder.checkpoints / "latest",
            time.time(),
        )
        if latest.is_file():
            self._fields["last_checkpoint"] = latest.read_text("utf-8", "replace").strip()
        text = json.dumps({**self._fields, "updated": now, "updated_utc": utc_time(now)}, indent=2)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            # Not flushed to disk: after a crash of the machine nobody asks what the run was doing.
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
