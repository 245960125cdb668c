"""The difference between two classifiers on the same samples, with a bootstrap interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harl_fast.eval.metrics import LEVEL

Right = npt.NDArray[np.bool_]
"""(N,): whether each sample's prediction counts as correct."""
_DRAWN_AT_ONCE = 1 << 24
"""Bound on the counts held at once, 128 MB."""


@dataclass(frozen=True)
class Difference:
    """An accuracy minus the one it is compared with, in points of percent."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_difference(
    right: Right,
    base: Right,
    labels: npt.NDArray[np.int64],
    *,
    per_class: bool,
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Return accuracy of ``right`` minus that of ``base`` on the same samples.

    labels: (N,) in [0, K). per_class: compare the mean over the classes present of each one's
    accuracy, not the share of all samples. The interval is the percentile interval of a bootstrap
    that draws samples, each with both of its outcomes (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, section 13.3): what both get right or wrong widens nothing. Only the class and
    the outcome of a sample matter, so counts of those are drawn, which is the same distribution.
    """
    classes = int(labels.max()) + 1
    # Cells of (class, outcome): lost, equal, won.
    cells = np.bincount(labels * 3 + 1 + right.astype(np.int64) - base, minlength=classes * 3)
    random, total = np.random.default_rng(seed), len(labels)
    at_once = max(1, _DRAWN_AT_ONCE // len(cells))
    found = []
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        drawn = random.multinomial(total, cells / total, size=count)
        found.append(_points(drawn.reshape(count, classes, 3), per_class=per_class))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail)).tolist()
    (value,) = _points(cells.reshape(1, classes, 3), per_class=per_class).tolist()
    return Difference(value, low, high)


def over_repeats(values: Sequence[float]) -> Difference:
    """Return the mean of two or more independent repeats with Student's t interval.

    A bootstrap of so few values, as one per seed, would be too narrow: 3 have 10 resamples.
    """
    from scipy import stats  # of the extra `eval`

    count, mean = len(values), statistics.fmean(values)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Difference(mean, mean - half, mean + half)


def _points(cells: npt.NDArray[np.int64], *, per_class: bool) -> npt.NDArray[np.float64]:
    """Return the differences (R,) of counts (R, K, 3), in points."""
    gain, counts = cells[..., 2] - cells[..., 0], cells.sum(-1)
    points: npt.NDArray[np.float64] = 100.0 * gain.sum(-1) / counts.sum(-1)
    if per_class:
        shares = gain / np.maximum(counts, 1)
        points = 100.0 * shares.sum(-1) / (counts > 0).sum(-1)
    return points
