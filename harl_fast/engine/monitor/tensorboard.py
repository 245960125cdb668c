"""TensorBoard's event file of a run."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard import summary as summaries

from harl_fast.engine.side import SideOutputs, append_whole
from harl_fast.model.loss import term_keys

NAMES = {
    "loss": "loss/total",
    **{key: key for key in term_keys()},
    "lr": "schedule/lr",
    "tau": "schedule/tau",
    "alpha": "schedule/alpha",
    "beta": "schedule/beta",
    "grad_norm": "norms/gradient",
    "weight_norm": "norms/weights",
    "update_norm": "norms/update",
    "trust_min": "trust/min",
    "trust_median": "trust/median",
    "trust_max": "trust/max",
    "loss_scale": "norms/loss_scale",
    "skipped": "health/skipped",
    "z_std": "spread/target_projections",
    "p_std": "spread/predictions",
    "h_std": "spread/features",
    "fg": "masks/coverage",
    "empty": "masks/empty",
    "img_s": "speed/images_per_s",
    "step_s": "speed/step_s",
    "wait": "speed/wait_share",
    "wait_worst": "speed/wait_share_worst_rank",
    "wait_s": "speed/wait_s",
    "eta_s": "speed/eta_s",
    "host_gb": "memory/host_gb",
    "cuda_gb": "memory/cuda_peak_gb",
    "damaged": "health/damaged",
    "probe_knn": "probe/knn_top1",
    "probe_linear": "probe/linear_top1",
    "probe_s": "probe/seconds",
}
"""TensorBoard's name of each field of a record."""


class Board:
    """Writes records, pictures and texts into one event file.

    Each event is on disk, or left out, when the call returns: TensorBoard's own writer hands them
    to a thread, which ends at the first error, and the file with it.
    """

    def __init__(self, folder: Path, side: SideOutputs, *, first_step: int) -> None:
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        self._path, self._side = folder / name, side
        # Points after the step that a resumed run starts from are hidden: they come again.
        start = SessionLog(status=SessionLog.START)
        self._head = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=first_step + 1, session_log=start),
        ]
        self._add()

    def record(
        self, record: Mapping[str, float], *, step: int, ratios: Sequence[float] = ()
    ) -> None:
        """Add all fields of a record that have a name, as one event.

        ratios: trust ratios, whose finite ones are added as a histogram if there are any.
        """
        values = [
            Summary.Value(tag=name, simple_value=record[key])
            for key, name in (NAMES | {key: key for key in term_keys()}).items()
            if key in record
        ]
        finite = np.array(ratios)[np.isfinite(ratios)]
        if len(finite):
            values += summaries.histogram("trust/histogram", finite, bins="auto").value
        self._add(Summary(value=values), step)

    def text(self, name: str, text: str) -> None:
        """Add a text, shown with its line breaks kept."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self._add(summaries.text(name, indented), 0)

    def picture(self, name: str, png: Path, *, step: int) -> None:
        """Add a PNG file as it is."""
        data = png.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # PNG's first chunk starts with them
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        self._add(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def _add(self, summary: Any = None, step: int = 0) -> None:  # protobuf's classes have no types
        """Append an event, and before the first of them what a file begins with."""
        events = list(self._head)
        if summary is not None:
            events.append(Event(wall_time=time.time(), step=step, summary=summary))
        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(event.SerializeToString())
        if self._side.write(self._path, lambda: self._append(records.getvalue())):
            self._head = []

    def _append(self, data: bytes) -> None:
        self._path.parent.mkdir(exist_ok=True)  # but not the run folder
        append_whole(self._path, data)
