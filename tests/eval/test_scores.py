"""Scores with intervals against scikit-learn and scipy; predictions against the metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from harl_fast.eval.metrics import NO_CLASS, from_logits, per_class, predictions, scores

CLASSES = 7


def case(rows: int = 400, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, rows, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02])
    logits = rng.normal(size=(rows, CLASSES))
    logits[np.arange(rows), labels] += 1.2
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


def test_values_are_scikit_learns() -> None:
    logits, labels = case()
    found = scores(predictions(logits, labels), classes=CLASSES)
    y, s = labels.numpy(), logits.numpy()
    assert found["top1"].value == pytest.approx(100 * (s.argmax(1) == y).mean())
    assert found["top5"].value == pytest.approx(100 * top_k_accuracy_score(y, s, k=5))
    assert found["mean_per_class"].value == pytest.approx(
        100 * balanced_accuracy_score(y, s.argmax(1))
    )


def test_intervals_are_scipys() -> None:
    logits, labels = case(1500)
    found = scores(predictions(logits, labels), classes=CLASSES)
    y, hit = labels.numpy(), (logits.argmax(1) == labels).numpy()

    def mean_per_class(hit: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([hit[y == c].mean() for c in np.unique(y)]))

    settings = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 4000}
    near = (logits.topk(5).indices == labels[:, None]).any(1).numpy()
    for name, right, metric in (
        ("top1", hit, lambda h, _: h.mean()),
        ("top5", near, lambda h, _: h.mean()),
        ("mean_per_class", hit, mean_per_class),
    ):
        expected = bootstrap((right, y), metric, rng=np.random.default_rng(1), **settings)
        low, high = expected.confidence_interval
        # Intervals here are 4 to 9 points wide; 2,000 draws place an end to 0.06 of a deviation.
        assert found[name].low == pytest.approx(100 * low, abs=0.3)
        assert found[name].high == pytest.approx(100 * high, abs=0.3)
        assert found[name].low < found[name].value < found[name].high


def test_predictions_and_scores_agree_with_the_metrics_even_where_classes_tie() -> None:
    logits, labels = case(300)
    logits = logits.round()  # many ties
    logits[5, 2], logits[9, 0] = float("nan"), float("inf")
    expected = from_logits(logits, labels, classes=CLASSES)
    predicted = predictions(logits, labels)
    found = scores(predicted, classes=CLASSES)
    assert found["top1"].value == pytest.approx(expected.top1)
    assert found["top5"].value == pytest.approx(expected.top5)
    assert found["mean_per_class"].value == pytest.approx(expected.mean_per_class)
    assert predicted.predicted[5] == NO_CLASS and predicted.probability[9] == 0.0


def test_probabilities_and_ranks_are_those_of_a_softmax() -> None:
    logits, labels = case(50)
    found = predictions(logits, labels)
    torch.testing.assert_close(found.probability, logits.softmax(1).max(1).values)
    assert torch.equal(found.top5, logits.topk(5).indices)
    two = predictions(logits[:, :2], labels % 2)
    assert (two.top5[:, 2:] == NO_CLASS).all() and (two.top5[:, :2] >= 0).all()


def test_the_seed_decides_the_interval_alone() -> None:
    found = predictions(*case())
    one, same, other = (scores(found, classes=CLASSES, seed=s)["top1"] for s in (1, 1, 2))
    assert one == same != other and one.value == other.value


def test_a_class_without_a_sample_counts_for_nothing() -> None:
    logits, labels = case()
    wider = torch.cat([logits, torch.full((len(labels), 1), -9.0)], 1)
    one, other = (
        scores(predictions(x, labels), classes=x.shape[1])["mean_per_class"].value
        for x in (logits, wider)
    )
    assert one == pytest.approx(other)
    rows = per_class(predictions(wider, labels), [f"c{i}" for i in range(CLASSES + 1)])
    assert rows[-1][:3] == ("c7", 0, 0) and rows[-1][3] != rows[-1][3]
    assert sum(count for _, count, _, _ in rows) == len(labels)
