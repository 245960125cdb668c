"""``run.json``: what a run is doing, for other programs to poll."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

from harl_fast.engine.side import SideOutputs
from harl_fast.host import utc_time

State = Literal[
    "starting", "warming", "training", "probing", "saving", "finished", "preempted", "failed"
]
FINAL = ("finished", "preempted", "failed")
PERIOD_S = 2.0
"""Shortest time between two writings that are not about another state."""


class RunStatus:
    """Keeps a small JSON file current; it is replaced whole, so a reader never sees half of it.

    Keys: ``state`` (see `State`), ``reason`` (of a failure), ``epoch`` (under way, from 1),
    ``epochs``, ``step`` (done), ``total``, ``img_s``, ``eta_s``, ``loss``, ``last_checkpoint``
    (name, null before the first), ``warnings`` (kinds of the alarms that are on), ``started`` and
    ``updated`` (Unix seconds; ``updated_utc`` is the same as text), ``pid`` and ``host``. A process
    that was killed leaves its last state: a reader should distrust an ``updated`` that is old.
    """

    def __init__(self, path: Path, side: SideOutputs, *, latest: Path) -> None:
        """path: the file. latest: the text file that names the newest checkpoint."""
        self._path, self._side, self._latest = path, side, latest
        self._fields: dict[str, Any] = {
            "state": "starting",
            "reason": "",
            "epoch": 0,
            "epochs": 0,
            "step": 0,
            "total": 0,
            "img_s": None,
            "eta_s": None,
            "loss": None,
            "last_checkpoint": None,
            "warnings": [],
            "started": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._written = -PERIOD_S

    @property
    def state(self) -> str:
        """The state last set."""
        return str(self._fields["state"])

    def set(self, state: State, *, reason: str = "") -> None:
        """Change the state and write the file; a final state stays."""
        if self.state not in FINAL:
            self._fields |= {"state": state, "reason": reason}
        self._write()

    def update(self, **fields: Any) -> None:
        """Change fields; the file is written when that is due again."""
        self._fields |= fields
        if time.monotonic() - self._written >= PERIOD_S:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._side.write(self._path, self._replace)

    def _replace(self) -> None:
        now = time.time()
        if self._latest.is_file():
            self._fields["last_checkpoint"] = self._latest.read_text("utf-8", "replace").strip()
        text = json.dumps({**self._fields, "updated": now, "updated_utc": utc_time(now)}, indent=2)
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            # Not flushed to disk: after a crash of the machine nobody asks what the run was doing.
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
