"""The paired bootstrap, against scipy's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from harl_fast.tools.paired import paired_difference

Labels = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]
"""(N,): whether each sample was right."""


def outcomes(count: int, classes: int, seed: int) -> tuple[Labels, Marks, Marks]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    base = random.random(count) < 0.5
    right = np.where(random.random(count) < 0.8, base, random.random(count) < 0.7)
    return labels, right, base


@pytest.mark.parametrize("per_class", [False, True])
def test_the_interval_is_that_of_drawing_samples_with_both_outcomes(per_class: bool) -> None:
    labels, right, base = outcomes(500, 6, seed=1)

    def difference(labels: Labels, right: Marks, base: Marks) -> float:
        gain = right.astype(float) - base
        if not per_class:
            return float(100 * gain.mean())
        each = [gain[labels == label].mean() for label in np.unique(labels)]
        return float(100 * np.mean(each))

    expected = stats.bootstrap(
        (labels, right, base), difference, paired=True, vectorized=False, n_resamples=3000,
        method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    found = paired_difference(right, base, labels, per_class=per_class)
    assert found.value == pytest.approx(difference(labels, right, base))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.3)
    assert found.clear == (found.low > 0 or found.high < 0)


def test_what_both_get_wrong_widens_nothing() -> None:
    labels, right, base = outcomes(500, 6, seed=1)
    found = paired_difference(right, base, labels, per_class=False)
    alone = stats.bootstrap(
        (right.astype(float),), np.mean, n_resamples=1000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.high - found.low < 100 * (alone.high - alone.low)
    same = paired_difference(base, base, labels, per_class=True)
    assert (same.value, same.low, same.high, same.clear) == (0, 0, 0, False)


def test_classes_without_a_sample_count_for_nothing() -> None:
    labels, right, base = outcomes(300, 4, seed=3)
    apart = paired_difference(right, base, labels * 7, per_class=True)
    assert apart.value == pytest.approx(
        paired_difference(right, base, labels, per_class=True).value
    )


def test_many_classes_are_drawn_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, right, base = outcomes(400, 50, seed=4)
    whole = paired_difference(right, base, labels, per_class=True, draws=2000)
    monkeypatch.setattr("harl_fast.tools.paired._DRAWN_AT_ONCE", 3 * 50 * 7)
    pieces = paired_difference(right, base, labels, per_class=True, draws=2000)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=0.5)
