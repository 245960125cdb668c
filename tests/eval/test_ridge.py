"""The ridge head against the textbook's augmented least squares in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.linear import stratified_split
from harl_fast.eval.ridge import PENALTIES, _scores, ridge_probe

CPU = torch.device("cpu")


def features(count: int, dim: int, *, classes: int, seed: int, noise: float) -> FeatureSet:
    """Return noisy class centres, the same for every seed, with a constant feature at the end."""
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed + 1)
    labels = np.arange(count) % classes
    rows = 3.0 + centres[labels] + noise * rng.normal(size=(count, dim))
    rows[:, -1] = 7.0
    return FeatureSet(torch.from_numpy(rows).float(), torch.from_numpy(labels))


@pytest.mark.parametrize(("count", "dim"), [(60, 8), (20, 50)])
def test_scores_are_those_of_augmented_least_squares(count: int, dim: int) -> None:
    """With more rows than features and with fewer, which is solved in the other space."""
    train = features(count, dim, classes=3, seed=0, noise=1.0)
    queries = features(9, dim, classes=3, seed=1, noise=1.0).features
    x, q = train.features.double().numpy(), queries.double().numpy()
    mean, deviation = x.mean(0), x.std(0)
    deviation[-1] = np.inf  # the constant feature says nothing
    x, q = (x - mean) / deviation, (q - mean) / deviation
    y = np.eye(3)[train.labels.numpy()]
    found = _scores(train, queries, classes=3, penalties=[0.01, 1.0], device=CPU)
    for penalty, scores in zip([0.01, 1.0], found, strict=True):
        augmented = np.vstack([x, np.sqrt(penalty * count) * np.eye(dim)])
        target = np.vstack([y - y.mean(0), np.zeros((dim, 3))])
        weight = np.linalg.lstsq(augmented, target, rcond=None)[0]
        np.testing.assert_allclose(scores.numpy(), q @ weight + y.mean(0), atol=1e-6)


def test_the_penalty_is_chosen_on_training_rows_alone() -> None:
    train = features(400, 60, classes=4, seed=0, noise=5.0)
    test = features(80, 60, classes=4, seed=1, noise=5.0)
    result = ridge_probe(train, test, classes=4)
    shuffled = FeatureSet(test.features.flip(0), test.labels)
    assert ridge_probe(train, shuffled, classes=4).penalty == result.penalty
    assert result.metrics.top1 > 50.0 and result.metrics.count == 80
    fit, held_out = stratified_split(train.labels, share=0.1, seed=0)
    part, rest = (FeatureSet(train.features[r], train.labels[r]) for r in (fit, held_out))
    scores = {
        penalty: ridge_probe(part, rest, classes=4, penalties=[penalty]).metrics.top1
        for penalty in PENALTIES
    }
    assert len(set(scores.values())) > 1
    best = max(scores.values())
    assert result.penalty == max(p for p, score in scores.items() if score == best)


def test_one_sample_a_class_cannot_choose() -> None:
    alone = features(4, 8, classes=4, seed=0, noise=1.0)
    with pytest.raises(DataError, match="two training samples"):
        ridge_probe(alone, alone, classes=4)
