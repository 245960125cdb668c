"""A linear head in closed form: cheap enough to judge features while a network trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from harl_fast.eval.features import FeatureSet
from harl_fast.eval.linear import HELD_OUT, standardiser, stratified_split
from harl_fast.eval.metrics import Metrics, from_logits

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class RidgeResult:
    """The chosen head's accuracies on the test set."""

    metrics: Metrics
    penalty: float


def ridge_probe(
    train: FeatureSet,
    test: FeatureSet,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    device: torch.device | None = None,
) -> RidgeResult:
    """Return how well a ridge regression onto one-hot labels separates frozen features.

    Features are standardised by the training set. The head minimises |X W - Y|^2 + c N |W|^2 over
    N rows; c is the one of ``penalties`` that does best on a stratified tenth of the *training*
    set (of equals the largest), the head is then fitted on all of it. Computed
    in float64 on ``device``. Raises DataError when no class has two training samples.
    """
    device = device or torch.device("cpu")
    fit, held_out = stratified_split(train.labels, share=HELD_OUT, seed=0)
    part, rest = (_rows(train, rows) for rows in (fit, held_out))
    scores = _scores(part, rest.features, classes=classes, penalties=penalties, device=device)
    found = [from_logits(score, rest.labels.to(device), classes=classes).top1 for score in scores]
    best = max(zip(found, penalties, strict=True))[1]
    (score,) = _scores(train, test.features, classes=classes, penalties=[best], device=device)
    return RidgeResult(from_logits(score, test.labels.to(device), classes=classes), best)


def _rows(data: FeatureSet, rows: Tensor) -> FeatureSet:
    return FeatureSet(data.features[rows], data.labels[rows])


def _scores(
    data: FeatureSet,
    queries: Tensor,
    *,
    classes: int,
    penalties: Sequence[float],
    device: torch.device,
) -> list[Tensor]:
    """Return the (M, classes) float64 scores of the queries (M, D), one per penalty."""
    features = data.features.to(device).double()
    shift = standardiser(features)
    x, q = shift(features), shift(queries.to(device).double())
    y = functional.one_hot(data.labels.to(device), classes).double()
    mean = y.mean(0)
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    right = y - mean if wide else x.T @ (y - mean)
    left = q @ x.T if wide else q
    scores = []
    for penalty in penalties:
        ridged = gram + penalty * x.shape[0] * torch.eye(len(gram), device=device).double()
        factor = torch.linalg.cholesky(ridged)
        scores.append(left @ torch.cholesky_solve(right, factor) + mean)
    return scores
