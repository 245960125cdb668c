"""Accuracy over a run: what its probes saw, its results of several steps, k-NN of checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.runfolder import json_lines
from harl_fast.errors import CheckpointError, one_line
from harl_fast.eval.knn import knn_accuracy
from harl_fast.eval.options import METRICS
from harl_fast.eval.results import Result, results_in
from harl_fast.files import to_stderr
from harl_fast.runfiles import RunFolder
from harl_fast.tools.comparison import Comparison, differing, freshly_initialised
from harl_fast.tools.features import check_containers, features_of, load_like, run_of

_PROBES = {"probe_knn": "k-NN of the run's own probe", "probe_linear": "ridge of the run's probe"}
"""Keys in metrics.jsonl, and what they are."""


@dataclass(frozen=True)
class Curve:
    """One accuracy by step."""

    name: str
    """The run."""
    what: str
    """What was measured."""
    points: list[tuple[int, float]]
    """Step and percent, by step; at least two."""


def find_curves(comparison: Comparison, *, data: Path | None = None) -> list[Curve]:
    """Return the curves of all runs among the results.

    data: folder of the containers that the results are of; each kept checkpoint is then judged
    on it by k-NN (k = 20), which takes a pass over both splits per checkpoint. Raises DataError
    if it holds other containers.
    """
    first = comparison.entries[0].result
    if data is not None:
        check_containers(data, first.data)
    runs = dict.fromkeys(filter(None, (run_of(entry.folder) for entry in comparison.entries)))
    curves = []
    for run in runs:
        points = {}
        for _, other in results_in(run, left_out="the curves"):
            step = other.checkpoint.get("step")
            fresh = freshly_initialised(other)
            if isinstance(step, int) and not (fresh or differing(first, other)):
                points[step] = other.metrics[first.headline].value
        curves.append(Curve(run.name, METRICS[first.headline], sorted(points.items())))
        if data is not None:
            curves.append(Curve(run.name, f"k-NN, {METRICS['top1']}", _knn(run, data, first)))
        probed = probe_curves(run)
        curves += [Curve(run.name, what, probed[key]) for key, what in _PROBES.items()]
    return [curve for curve in curves if len(curve.points) > 1]


def probe_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run's probes found, from its metrics.jsonl."""
    found: dict[str, dict[int, float]] = {key: {} for key in _PROBES}
    for record in json_lines(RunFolder(run).metrics):
        for key, points in found.items():
            step, value = record.get("step"), record.get(key)
            if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
                points[step] = float(value)
    return {key: sorted(points.items()) for key, points in found.items()}


def _knn(run: Path, data: Path, like: Result) -> list[tuple[int, float]]:
    """Return the step and k-NN top-1 of each complete checkpoint of a run."""
    points = []
    for path in sorted((run / "checkpoints").glob("step-*.safetensors")):
        try:
            step = open_checkpoint(path).record.step
        except CheckpointError as error:
            to_stderr(one_line(f"left out: {error}"))
            continue
        train, val = features_of(load_like(path, like), like, data, ("train", "val"))
        classes = len(like.data["classes"])
        points.append((step, knn_accuracy(train, val, classes=classes).top1))
    return sorted(points)
