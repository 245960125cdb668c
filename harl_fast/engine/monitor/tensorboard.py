"""TensorBoard's event file of a run."""

from __future__ import annotations

import io
import math
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard import summary as summaries

from harl_fast.engine.monitor.sink import Figures, LogRecord, RunInfo, Sink
from harl_fast.side import SideOutputs, append_whole

TAGS = {
    "loss": ("loss/total", "Weighted sum of the loss terms; of whole, fg and bg alone in [0, 8]."),
    "probe_knn": ("probe/knn_top1", "Top-1 of k-NN on frozen features of held-out images, in %."),
    "probe_linear": ("probe/linear_top1", "Top-1 of a ridge head on the same features, in %."),
    "z_std": (
        "spread/target_projections",
        "Spread of the target's projections: 1 is even over the sphere, 0 collapsed.",
    ),
    "p_std": ("spread/predictions", "The same of the online predictions."),
    "h_std": ("spread/features", "The same of the pooled features, never negative: below 1."),
    "z_rank": ("spread/rank_of_projections", "Dimensions that the target's projections use."),
    "h_rank": ("spread/rank_of_features", "The same of the pooled features."),
    "fg": ("masks/coverage", "Mean share of a view that its mask covers."),
    "empty": ("masks/empty", "Share of pairs without foreground in one of the views."),
    "lr": ("schedule/lr", "Learning rate: linear warm-up, then half a cosine."),
    "tau": ("schedule/tau", "Share of the old target kept at each step."),
    "alpha": ("schedule/alpha", "Foreground's share against background."),
    "beta": ("schedule/beta", "Whole image's share against the regions."),
    "grad_norm": ("norms/gradient", "Norm of the whole averaged gradient."),
    "weight_norm": ("norms/weights", "Norm of all weights after the logged step."),
    "update_norm": ("norms/update", "Norm of what the logged step changed in them."),
    "loss_scale": ("norms/loss_scale", "Factor of the loss under fp16."),
    "trust_median": ("trust/median", "Median of LARS's trust ratios."),
    "trust_min": ("trust/min", "Least of them; 0 is a dead layer."),
    "trust_max": ("trust/max", "Largest of them."),
    "skipped": ("health/skipped", "Steps since the last record that changed nothing."),
    "damaged": ("health/damaged", "Damaged samples replaced so far, over all ranks."),
    "img_s": ("speed/images_per_s", "Images per second, over all ranks."),
    "wait_worst": ("speed/wait_share_worst_rank", "Worst rank's share of time without images."),
    "wait": ("speed/wait_share", "Mean share of time spent waiting for images."),
    "wait_s": ("speed/wait_s", "The same in seconds since the last record."),
    "step_s": ("speed/step_s", "Seconds per step."),
    "eta_s": ("speed/eta_s", "Seconds to the end of the run."),
    "probe_s": ("probe/seconds", "Time that the online probe took."),
    "host_gb": ("memory/host_gb", "Memory of the largest rank's process, without mapped files."),
    "cuda_gb": ("memory/cuda_peak_gb", "Peak of GPU memory on the fullest rank."),
}
"""TensorBoard's tag and description of each field of a record, the most telling first.

A loss term ``loss/NAME`` keeps its name. TensorBoard itself sorts tags by name; the order shows in
its Custom Scalars.
"""
HPARAM_METRICS = ("loss", "probe_knn", "probe_linear")
"""What the table of runs (HParams) shows beside each run's settings: its last value."""


class TensorBoard(Sink):
    """Writes scalars, trust ratios, pictures, texts and hyperparameters into one event file.

    Each event is on disk, or left out, when a call returns, and a disk that was full for a while
    costs its events only. torch's SummaryWriter (add_scalar and its kin) cannot promise that: it
    hands events to a thread, which ends at the first error, and the file with it. So events are
    made by the functions it uses itself and appended here.
    """

    def __init__(self, run: RunInfo, files: SideOutputs) -> None:
        super().__init__(run, files)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        self._path = run.folder.tensorboard / name
        self._described: set[str] = set()
        # Points after the step that a resumed run starts from are hidden: they come again.
        start = SessionLog(status=SessionLog.START)
        self._head = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=run.first_step + 1, session_log=start),
        ]
        metrics = {TAGS[key][0]: math.nan for key in HPARAM_METRICS}
        *begun, self._ended = summaries.hparams(dict(run.hparams), metrics)
        for summary in (*begun, summaries.custom_scalars(_layout())):
            self._add(summary)
        for name, text in run.texts.items():  # indented, for line breaks to be kept
            self._add(summaries.text(name, "".join(f"    {line}\n" for line in text.splitlines())))

    def write(self, record: LogRecord) -> None:
        """Add all fields that have a tag, and a histogram of the finite trust ratios."""
        summary = self._scalars(record.figures)
        finite = np.array(record.ratios)[np.isfinite(record.ratios)]
        if len(finite):
            summary.MergeFrom(summaries.histogram("trust/histogram", finite, bins="auto"))
        self._add(summary, record.figures["step"])

    def write_probe(self, figures: Figures) -> None:
        """Add all fields that have a tag."""
        self._add(self._scalars(figures), figures["step"])

    def image(self, name: str, png: Path, *, step: int) -> None:
        """Add a PNG file as it is."""
        data = png.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # PNG's first chunk starts with them
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        self._add(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Mark the run as ended in the table of runs."""
        self._add(self._ended)

    def _scalars(self, figures: Figures) -> Summary:
        summary = Summary()
        terms = {key: (key, "A term of the loss.") for key in figures if key.startswith("loss/")}
        for key, (tag, description) in {**TAGS, **terms}.items():
            if key in figures:
                value = summary.value.add(tag=tag, simple_value=figures[key])
                if tag not in self._described:  # a tag's first value describes it
                    value.metadata.summary_description = description
                    value.metadata.plugin_data.plugin_name = "scalars"
                    self._described.add(tag)
        return summary

    def _add(self, summary: Any, step: float = 0) -> None:  # protobuf's classes have no types
        """Append an event, and before the first of them what a file begins with."""
        records = io.BytesIO()
        for event in (*self._head, Event(wall_time=time.time(), step=int(step), summary=summary)):
            RecordWriter(records).write(event.SerializeToString())

        def append() -> None:
            for folder in (self._path.parent.parent, self._path.parent):  # but not the run folder
                folder.mkdir(exist_ok=True)
            append_whole(self._path, records.getvalue())

        if self.files.write(self._path, append):
            self._head = []


def _layout() -> dict[str, dict[str, list[Any]]]:
    """Return the charts of Custom Scalars: one per group of tags, in the order of `TAGS`."""
    groups: dict[str, list[Any]] = {}
    for tag, _ in TAGS.values():
        group, _, name = tag.partition("/")
        pattern = "loss/.*" if group == "loss" else tag
        groups.setdefault(group, []).append((name, ["Multiline", [pattern]]))
    return {group: dict(charts) for group, charts in groups.items()}
