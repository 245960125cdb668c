"""Accuracies against naive loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from harl_fast.eval.metrics import from_logits, outranked


def scores(seed: int, *, rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 1.0
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("classes", [2, 6, 101])
def test_equal_to_scikit_learn(classes: int) -> None:
    logits, labels = scores(classes, rows=700, classes=classes)
    metrics = from_logits(logits, labels, classes=classes)
    predicted = logits.argmax(1).numpy()
    # One rounding a count: the sums are of integers, the division is exact to 1 ulp.
    assert metrics.top1 == pytest.approx(100 * (predicted == labels.numpy()).mean(), rel=1e-14)
    balanced = balanced_accuracy_score(labels.numpy(), predicted)
    assert metrics.mean_per_class == pytest.approx(100 * balanced, rel=1e-13)
    if classes > 5:
        every = list(range(classes))
        top5 = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=5, labels=every)
        assert metrics.top5 == pytest.approx(100 * top5, rel=1e-14)
    else:
        assert metrics.top5 == 100.0
    assert metrics.count == 700


def test_absent_classes_do_not_enter_the_class_mean() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    logits = torch.eye(4)[torch.tensor([0, 1, 1, 2])]
    metrics = from_logits(logits, labels, classes=4)
    assert metrics.top1 == 50.0
    assert metrics.mean_per_class == pytest.approx((100 / 3 + 100) / 2)


def test_a_constant_output_scores_nothing_in_any_class_order() -> None:
    logits, labels = torch.zeros(50, 10), torch.arange(50) % 10
    metrics = from_logits(logits, labels, classes=10)
    assert (metrics.top1, metrics.top5) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_wrong(bad: float) -> None:
    logits = torch.eye(6)
    logits[3] = bad
    logits[4, 0] = bad
    metrics = from_logits(logits, torch.arange(6), classes=6)
    assert metrics.top1 == pytest.approx(100 * 4 / 6)
    assert metrics.top5 == pytest.approx(100 * 4 / 6)


def test_outranked_takes_many_heads_at_once() -> None:
    logits, labels = scores(0, rows=20, classes=7)
    stacked = torch.stack([logits, -logits, logits * 2])
    together = outranked(stacked, labels)
    for head in range(3):
        assert torch.equal(together[head], outranked(stacked[head], labels))
