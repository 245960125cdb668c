"""Linear heads against torch.optim, autograd and scikit-learn; the choice against leaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.linear import (
    LinearResult,
    check_counts,
    linear_probe,
    standardiser,
    stratified_split,
)
from harl_fast.rng import permutation

CLASSES = 5


def clusters(seed: int, *, rows: int, dim: int = 12) -> FeatureSet:
    centres = np.random.default_rng(0).normal(size=(CLASSES, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    features = 3.0 + centres[labels] + 1.5 * rng.normal(size=(rows, dim))
    return FeatureSet(torch.from_numpy(features).float(), torch.from_numpy(labels))


def rows_of(data: FeatureSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    return data.features[rows].double(), data.labels[rows]


def probe(train: FeatureSet, test: FeatureSet, **changes: object) -> LinearResult:
    options = {"epochs": 6, "lrs": (0.01, 0.1), "weight_decays": (0.0, 0.05), "batch": 32}
    return linear_probe(train, test, classes=CLASSES, **(options | changes))  # type: ignore[arg-type]


def reference_head(x: Tensor, y: Tensor, *, lr: float, decay: float, epochs: int) -> nn.Linear:
    """Train one head in float64 by autograd and torch's own optimizer and schedule."""
    batch, seed = 32, 0
    head = nn.Linear(x.shape[1], CLASSES, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(
        [{"params": [head.weight], "weight_decay": decay}, {"params": [head.bias]}],
        lr=lr,
        momentum=0.9,
        nesterov=True,
    )
    total = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(seed, epoch, len(x)))
        for index in order.split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(head(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return head.requires_grad_(False)


def test_every_head_of_the_grid_is_a_separate_sgd_run() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=150)
    result = probe(train, test)
    fit, held_out = stratified_split(train.labels, share=0.1, seed=0)
    x, y = rows_of(train, fit)
    mean, std = x.mean(0), x.std(0, correction=0)
    x_held, y_held = rows_of(train, held_out)
    assert [(t.lr, t.weight_decay) for t in result.trials] == [
        (0.01, 0.0), (0.01, 0.05), (0.1, 0.0), (0.1, 0.05)
    ]  # fmt: skip
    for trial in result.trials:
        head = reference_head((x - mean) / std, y, lr=trial.lr, decay=trial.weight_decay, epochs=6)
        logits = head((x_held - mean) / std)
        # Float32 against float64 over 36 steps of sums of 32: about 1e-6 each.
        assert trial.nll == pytest.approx(float(functional.cross_entropy(logits, y_held)), rel=1e-4)
        assert trial.top1 == pytest.approx(
            100 * float((logits.argmax(1) == y_held).double().mean())
        )


def test_the_chosen_head_is_trained_again_on_all_training_samples() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=150)
    result = probe(train, test)
    x, y = rows_of(train, torch.arange(203))
    mean, std = x.mean(0), x.std(0, correction=0)
    head = reference_head((x - mean) / std, y, lr=result.lr, decay=result.weight_decay, epochs=6)
    predicted = head((test.features.double() - mean) / std).argmax(1)
    assert result.metrics.top1 == pytest.approx(
        100 * float((predicted == test.labels).double().mean())
    )
    assert result.metrics.count == 150


@pytest.mark.parametrize("decay", [0.01, 0.1])
def test_converges_to_scikit_learns_regularised_optimum(decay: float) -> None:
    train, test = clusters(1, rows=400), clusters(2, rows=500)
    fit, held_out = stratified_split(train.labels, share=0.1, seed=0)
    x, y = rows_of(train, fit)
    mean, std = x.mean(0), x.std(0, correction=0)
    # Mean loss plus decay/2 |W|^2 is scikit-learn's sum of losses times C plus 1/2 |W|^2.
    model = LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=2000)
    model.fit(((x - mean) / std).numpy(), y.numpy())
    x_held, y_held = rows_of(train, held_out)
    log_p = model.predict_log_proba(((x_held - mean) / std).numpy())
    expected = -log_p[np.arange(len(y_held)), y_held.numpy()].mean()
    result = probe(train, test, lrs=(0.3,), weight_decays=(decay,), epochs=300, batch=400)
    assert result.trials[0].nll == pytest.approx(expected, rel=1e-3)


def test_the_best_held_out_trial_is_chosen() -> None:
    result = probe(clusters(1, rows=400), clusters(2, rows=100), lrs=(1e-6, 0.1, 0.3))
    best = max(result.trials, key=lambda trial: (trial.top1, -trial.nll))
    assert (result.lr, result.weight_decay) == (best.lr, best.weight_decay)


def test_the_choice_does_not_see_the_test_set() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=100)
    wrong = FeatureSet(test.features * 100, (test.labels + 1) % CLASSES)
    one, other = probe(train, test), probe(train, wrong)
    assert one.trials == other.trials
    assert (one.lr, one.weight_decay) == (other.lr, other.weight_decay)


def test_a_head_that_diverges_is_never_chosen() -> None:
    result = probe(clusters(1, rows=203), clusters(2, rows=100), lrs=(0.1, 1e30), epochs=3)
    assert result.lr == 0.1
    diverged = [trial for trial in result.trials if trial.lr > 1]
    assert all(trial.nll == math.inf or trial.nll > 1e6 for trial in diverged)
    assert result.metrics.top1 > 50


def test_a_choice_at_the_grids_edge_is_marked() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=100)
    assert probe(train, test, lrs=(1e-9, 1e-8)).lr_at_edge
    assert not probe(train, test, lrs=(0.1,)).lr_at_edge


def test_scale_and_shift_of_a_feature_do_not_matter() -> None:
    train, test = clusters(1, rows=300), clusters(2, rows=300)
    scale, shift = torch.logspace(-3, 3, 12), torch.linspace(-5, 5, 12)
    moved = [FeatureSet(d.features * scale + shift, d.labels) for d in (train, test)]
    # Float32 loses digits where the shift dwarfs the scale: a few samples at the border may flip.
    assert probe(*moved).metrics.top1 == pytest.approx(probe(train, test).metrics.top1, abs=1.5)


def test_a_constant_feature_says_nothing_and_breaks_nothing() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=100)

    def padded(data: FeatureSet, value: float) -> FeatureSet:
        extra = torch.full((len(data.labels), 1), value)
        return FeatureSet(torch.cat([data.features, extra], 1), data.labels)

    assert float(standardiser(padded(train, 0.1).features).scale[-1]) == 0.0
    # Dead in training and alive in the test set: it must not reach the scores.
    result = probe(padded(train, 0.1), padded(test, 1e6))
    assert result.metrics == probe(train, test).metrics


def test_the_same_seed_gives_the_same_result_and_another_seed_another_split() -> None:
    train, test = clusters(1, rows=203), clusters(2, rows=100)
    assert probe(train, test, seed=3) == probe(train, test, seed=3)
    one, other = (stratified_split(train.labels, share=0.1, seed=seed)[1] for seed in (3, 4))
    assert not torch.equal(one, other)


def test_a_subset_that_is_too_small_is_blamed_itself() -> None:
    with pytest.raises(DataError, match=r"in the subset 1%, .*; choose a larger subset"):
        check_counts([1, 1], subset="1%")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=300), st.integers(0, 99))
def test_a_split_is_stratified_disjoint_and_complete(labels: list[int], seed: int) -> None:
    tensor = torch.tensor(labels)
    counts = torch.bincount(tensor)
    if int(counts.max()) < 2:
        with pytest.raises(DataError, match="two training samples"):
            stratified_split(tensor, share=0.1, seed=seed)
        return
    fit, held_out = stratified_split(tensor, share=0.1, seed=seed)
    assert sorted([*fit.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts.tolist()):
        held = int((tensor[held_out] == label).sum())
        assert held == (max(1, round(0.1 * count)) if count > 1 else 0)
