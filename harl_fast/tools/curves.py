"""Accuracy over a run: what its probes saw, its results of several steps, k-NN of checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harl_fast.eval.results import RESULT, read_result
from harl_fast.errors import DataError
from harl_fast.tools.comparison import METRICS, Comparison, Entry, differing


@dataclass(frozen=True)
class Curve:
    """One accuracy by step."""

    name: str
    """The run."""
    what: str
    """What was measured, on what."""
    points: list[tuple[int, float]]
    """Step, percent; at least two, by step."""
