"""Accuracies from class scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """Accuracies in percent."""

    top1: float
    top5: float
    mean_per_class: float
    """Mean over the classes present of each one's top-1: no class weighs more for being larger."""
    count: int
    """Samples judged."""


def from_logits(logits: Tensor, labels: Tensor, *, classes: int) -> Metrics:
    """Return the accuracies of class scores.

    logits: (N, classes) float, N > 0. labels: (N,) int64 in [0, classes).
    A tie counts against the sample, and so does a row that is not finite: a collapsed or diverged
    head must never score by the order in which classes happen to be stored.
    """
    better = outranked(logits, labels)
    correct = (better < 1).double()
    per_class = torch.zeros(classes, dtype=torch.float64, device=labels.device)
    per_class.index_add_(0, labels, correct)
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return Metrics(
        top1=100.0 * float(correct.mean()),
        top5=100.0 * float((better < 5).double().mean()),
        mean_per_class=100.0 * float((per_class[present] / counts[present]).mean()),
        count=labels.shape[0],
    )


def outranked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many other classes score at least as high as the true one.

    logits: (..., N, classes). labels: (N,) int64. Returns (..., N) int64; ``classes`` where a row
    is not finite.
    """
    index = labels[:, None].expand(*logits.shape[:-1], 1)
    truth = logits.gather(-1, index)
    better = (logits >= truth).sum(-1) - 1
    finite = torch.isfinite(logits).all(-1)
    return torch.where(finite, better, logits.shape[-1])
