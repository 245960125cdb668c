"""TensorBoard's event file of a run."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

NAMES = {
    "loss": "loss/total",
    "loss/whole": "loss/whole",
    "loss/fg": "loss/fg",
    "loss/bg": "loss/bg",
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
    """Writes records, histograms, pictures and texts into one event file."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        # Points after the step that a resumed run starts from are hidden: they come again.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1, flush_secs=30)

    def record(self, record: Mapping[str, float], *, step: int) -> None:
        """Add all fields of a record that have a name, as one event."""
        values = [
            Summary.Value(tag=name, simple_value=record[key])
            for key, name in NAMES.items()
            if key in record
        ]
        self._add(Summary(value=values), step)

    def histogram(self, name: str, values: list[float], *, step: int) -> None:
        """Add a histogram of the finite ones of the values, if there are any."""
        finite = np.array(values)[np.isfinite(values)]
        if len(finite):
            self._writer.add_histogram(name, finite, step, bins="auto")

    def text(self, name: str, text: str) -> None:
        """Add a text, shown with its line breaks kept."""
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()))

    def picture(self, name: str, png: Path, *, step: int) -> None:
        """Add a PNG file as it is."""
        data = png.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # PNG's first chunk starts with them
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._add(summary, step)

    def _add(self, summary: Any, step: int) -> None:  # protobuf's classes have no types
        self._writer._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        """Write what is queued and end."""
        self._writer.close()
