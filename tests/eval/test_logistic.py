"""The protocol around logistic regression: the choice of C, and what it may see."""

from __future__ import annotations

import pytest
import torch

from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.linear import stratified_split
from harl_fast.eval.logistic import logistic_probe
from harl_fast.eval.logreg import optima
from tests.eval.test_linear import CLASSES, clusters

CS = [1e-3, 1e-1, 10.0]


def test_the_best_on_held_out_rows_is_solved_again_on_all() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=150)
    result = logistic_probe(train, test, classes=CLASSES, cs=CS)
    best = max(result.trials, key=lambda trial: (trial.top1, -trial.nll))
    assert result.c == best.c and [trial.c for trial in result.trials] == CS
    mean, std = train.features.mean(0), train.features.std(0, correction=0)
    shifted = (train.features - mean) / std
    (found,) = optima(shifted, train.labels, classes=CLASSES, cs=[result.c])
    predicted = found.head((test.features - mean) / std).argmax(1)
    assert result.metrics.top1 == pytest.approx(
        100 * float((predicted == test.labels).double().mean())
    )
    # The head of plain features says the same.
    assert torch.equal(result.head(test.features).argmax(1), predicted)


def test_trials_are_fitted_without_the_held_out_rows() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=50)
    _, held_out = stratified_split(train.labels, share=0.1, seed=0)
    spoiled = train.features.clone()
    spoiled[held_out] += 100.0
    one, other = (
        logistic_probe(FeatureSet(x, train.labels), test, classes=CLASSES, cs=CS)
        for x in (train.features, spoiled)
    )
    for a, b in zip(one.trials, other.trials, strict=True):
        assert a.objective == pytest.approx(b.objective) and a.nll != b.nll


def test_a_choice_at_the_edge_is_marked_and_the_test_set_is_not_seen() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=50)
    wrong = FeatureSet(test.features * 100, (test.labels + 1) % CLASSES)
    one, other = (
        logistic_probe(train, data, classes=CLASSES, cs=[1e-6, 1e-5, 1e-2])
        for data in (test, wrong)
    )
    assert one.trials == other.trials and one.c == other.c
    assert one.c_at_edge == (one.c in (1e-6, 1e-2)) and ("edge" in one.explain()) == one.c_at_edge


def test_one_class_is_refused() -> None:
    data = clusters(1, rows=20)
    alone = FeatureSet(data.features, torch.zeros(20, dtype=torch.int64))
    with pytest.raises(DataError, match="1 class"):
        logistic_probe(alone, alone, classes=2)
