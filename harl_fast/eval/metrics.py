"""Accuracies from class scores, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RESAMPLES = 2000
"""Bootstrap samples behind an interval; its ends then vary by about 0.06 standard errors."""
LEVEL = 0.95
"""Share of the bootstrap distribution that an interval covers."""
NO_CLASS = -1
"""The predicted class of a row whose scores are not finite, and what fills a top-5 of fewer."""


@dataclass(frozen=True)
class Metrics:
    """Accuracies in percent."""

    top1: float
    top5: float
    mean_per_class: float
    """Mean over the classes present of each one's top-1: no class weighs more for being larger."""
    count: int
    """Samples judged."""


@dataclass(frozen=True)
class Score:
    """One accuracy in percent with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of N samples, on the CPU."""

    labels: Tensor
    """(N,) int64: the true classes."""
    predicted: Tensor
    """(N,) int64: the class of the highest score, `NO_CLASS` if the scores are not finite."""
    top5: Tensor
    """(N, 5) int64: the classes of the five highest scores, highest first."""
    probability: Tensor
    """(N,) float32: the softmax probability of the predicted class; 0 without one."""

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the predictions of several parts as one."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(torch.cat, columns))


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


def predictions(logits: Tensor, labels: Tensor) -> Predictions:
    """Return what class scores predict, such that counting hits gives what `from_logits` says.

    logits: (N, classes) float. labels: (N,) int64. The true class therefore ranks behind those
    of equal score.
    """
    scores, labels = logits.detach().double().cpu(), labels.cpu()
    finite = torch.isfinite(scores).all(1)
    scores = torch.where(finite[:, None], scores, 0.0)
    truth = scores.gather(1, labels[:, None])
    ranked = scores.scatter(
        1, labels[:, None], torch.nextafter(truth, truth.new_tensor(-torch.inf))
    )
    found = ranked.topk(min(5, ranked.shape[1]), dim=1).indices
    top5 = torch.full((len(labels), 5), NO_CLASS)
    top5[:, : found.shape[1]] = found
    top5[~finite] = NO_CLASS
    likely = scores.softmax(1).gather(1, found[:, :1])[:, 0].float()
    return Predictions(labels, top5[:, 0].clone(), top5, torch.where(finite, likely, 0.0))


def scores(found: Predictions, *, classes: int, seed: int = 0) -> dict[str, Score]:
    """Return top1, top5 and mean_per_class in percent, each with its interval.

    The interval holds the middle 95 % of the metric over `RESAMPLES` draws of N samples with
    replacement (the percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13). seed: of the draws. classes: K; labels are below it.
    """
    # Each metric depends on how many samples of each class are right, near or wrong. Drawing these
    # counts is drawing the samples, in time that does not grow with N.
    table = _outcomes(found, classes=classes)
    draws = np.random.default_rng(seed).multinomial(
        table.sum(), table / table.sum(), size=RESAMPLES
    )
    value, drawn = (_metrics(each.reshape(-1, classes, 3)) for each in (table[None], draws))
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return {
        name: Score(float(value[name][0]), *(float(x) for x in np.quantile(drawn[name], ends)))
        for name in value
    }


def accuracies(found: Predictions, *, classes: int) -> Metrics:
    """Return the same metrics without intervals. classes: K; labels are below it."""
    table = _outcomes(found, classes=classes).reshape(1, -1, 3)
    plain = {name: float(value[0]) for name, value in _metrics(table).items()}
    return Metrics(**plain, count=len(found.labels))


def _outcomes(found: Predictions, *, classes: int) -> npt.NDArray[np.int64]:
    """Return (3 K,) counts: of each class's samples those right, those in the top 5, the others."""
    hits = found.predicted == found.labels
    near = (found.top5 == found.labels[:, None]).any(1)
    outcome = 2 - near.long() - hits.long()
    table: npt.NDArray[np.int64] = torch.bincount(
        found.labels * 3 + outcome, minlength=3 * classes
    ).numpy()
    return table


def _metrics(counts: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return each metric (R,) in percent of R tables (R, K, 3): right, in the top 5, wrong."""
    per_class = counts.sum(2)
    total = per_class.sum(1)
    with np.errstate(invalid="ignore"):
        share = np.where(per_class > 0, counts[..., 0] / per_class, 0.0)
    return {
        "top1": 100.0 * counts[..., 0].sum(1) / total,
        "top5": 100.0 * counts[..., :2].sum((1, 2)) / total,
        "mean_per_class": 100.0 * share.sum(1) / (per_class > 0).sum(1),
    }


def per_class(found: Predictions, names: Sequence[str]) -> list[tuple[str, int, int, float]]:
    """Return each class's name, samples, hits and accuracy in percent (NaN without a sample)."""
    counts = torch.bincount(found.labels, minlength=len(names))
    hits = torch.bincount(found.labels[found.predicted == found.labels], minlength=len(names))
    return [
        (name, count, right, 100.0 * right / count if count else float("nan"))
        for name, count, right in zip(names, counts.tolist(), hits.tolist(), strict=True)
    ]
