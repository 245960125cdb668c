"""Weighted nearest-neighbour classification of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harl_fast.eval.features import FeatureSet
from harl_fast.eval.metrics import Metrics, from_logits

SIMILARITIES = 1 << 26
"""Default bound on similarities held at once (256 MB), whatever the size of the training set."""


def knn_accuracy(
    train: FeatureSet,
    test: FeatureSet,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int | None = None,
    device: torch.device | None = None,
) -> Metrics:
    """Return the accuracies of a vote of the k nearest training samples by cosine.

    A neighbour of similarity s votes for its class with weight exp(s / temperature) (Wu et al.,
    Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018; k = 20 is
    the value DINO reports best). k is lowered to the size of the training set when that is smaller.
    chunk: test rows compared at once; by default as many as keep within `SIMILARITIES`.
    """
    device = device or torch.device("cpu")
    bank = functional.normalize(train.features.to(device), dim=1).T.contiguous()
    bank_labels = train.labels.to(device)
    rows = chunk or max(1, SIMILARITIES // bank.shape[1])
    votes = [
        _votes(part.to(device), bank, bank_labels, classes=classes, k=k, temperature=temperature)
        for part in test.features.split(rows)
    ]
    return from_logits(torch.cat(votes), test.labels.to(device), classes=classes)


def _votes(
    queries: Tensor, bank: Tensor, labels: Tensor, *, classes: int, k: int, temperature: float
) -> Tensor:
    similarity = functional.normalize(queries, dim=1) @ bank
    nearest, index = similarity.topk(min(k, bank.shape[1]), dim=1)
    # Minus one keeps the exponent at or below zero; it scales all votes of a row alike.
    weights = ((nearest - 1.0) / temperature).exp()
    votes = torch.zeros(queries.shape[0], classes, device=queries.device)
    return votes.scatter_add_(1, labels[index], weights)
