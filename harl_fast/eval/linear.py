"""Linear heads on frozen features: a grid trained at once, the setting chosen without the test set.

Protocol: features are standardised with the training set's mean and deviation; every pair of
learning rate and weight decay gets a head; all heads see the same batches; the pair that does best
on a stratified tenth of the *training* set is trained again on all of it and judged on the test
set, once.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.matmul import matmul
from harl_fast.eval.metrics import Metrics, Predictions, from_logits, outranked, predictions
from harl_fast.eval.options import EPOCHS
from harl_fast.eval.results import Head
from harl_fast.files import Progress
from harl_fast.rng import ORDER, permutation, uniforms

LRS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 1e-3, 1e-2, 1e-1)
MOMENTUM = 0.9
_ROWS = 1 << 13
HELD_OUT = 0.1
"""Share of each class's training samples that chooses the setting."""


@dataclass(frozen=True)
class Trial:
    """One head of the grid, judged on the held-out part of the training set."""

    lr: float
    weight_decay: float
    top1: float
    """Percent."""
    nll: float
    """Mean negative log-likelihood in nats; infinite for a head that diverged."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult(ABC):
    """A chosen head's accuracies on the test set, and what it was chosen among."""

    metrics: Metrics
    trials: tuple[Any, ...]
    """A record (dataclass) of each setting that was tried."""
    head: Head = field(compare=False, repr=False)
    """The chosen head, of features as they are: standardisation is folded in. On the CPU."""
    predictions: Predictions = field(compare=False, repr=False)
    """Of the test set."""

    def record(self) -> dict[str, Any]:
        """Return accuracies, choice and trials as plain values."""
        return {"metrics": asdict(self.metrics), **self.choice(), "trials": self.trial_records()}

    def trial_records(self) -> list[dict[str, Any]]:
        """Return the trials as plain values."""
        return [asdict(trial) for trial in self.trials]

    @abstractmethod
    def choice(self) -> dict[str, Any]:
        """Return the chosen setting."""

    @abstractmethod
    def explain(self) -> str:
        """Return the chosen setting in words."""


@dataclass(frozen=True, kw_only=True)
class LinearResult(ProbeResult):
    """The head that `linear_probe` chose among `Trial` records."""

    lr: float
    weight_decay: float
    lr_at_edge: bool
    """The chosen rate is the grid's lowest or highest: a wider grid might do better."""

    def choice(self) -> dict[str, Any]:
        """Return the chosen setting."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "lr_at_edge": self.lr_at_edge}

    def explain(self) -> str:
        """Return the choice in words."""
        edge = " (the grid's edge: a wider grid may do better)" if self.lr_at_edge else ""
        return (
            f"linear head with lr {self.lr}, weight decay {self.weight_decay}, chosen on held-out "
            f"training images{edge}"
        )


@dataclass(frozen=True)
class _Recipe:
    """What all heads of one probe share."""

    classes: int
    epochs: int
    batch: int
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Standardiser:
    """Shift and scale of each feature."""

    mean: Tensor
    """(D,)"""
    scale: Tensor
    """(D,) one over the standard deviation; zero for a constant feature, which says nothing."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return (..., D) features with the fitted set's mean 0 and deviation 1."""
        return (features - self.mean) * self.scale

    def folded(self, head: Head) -> Head:
        """Return the head of plain features that equals one of standardised features, on the CPU.

        Computed in float64: shifts can be large beside deviations.
        """
        weight, bias, mean = (t.double().cpu() for t in (head.weight, head.bias, self.mean))
        weight = weight * self.scale.double().cpu()
        return Head(weight.float(), (bias - weight @ mean).float())


@dataclass(frozen=True)
class Heads:
    """G linear heads side by side, so that all of them are one matrix product."""

    weight: Tensor
    """(D, G, K) float32."""
    bias: Tensor
    """(G, K) float32."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return (B, G, K) scores of (B, D) features."""
        return matmul(features, self.weight.flatten(1)).view(-1, *self.bias.shape) + self.bias


def standardiser(features: Tensor) -> Standardiser:
    """Return the shift and scale that standardise (N, D) features."""
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    constant = deviation <= 1e-6 * mean.abs().clamp_min(torch.finfo(torch.float32).tiny)
    return Standardiser(mean, torch.where(constant, 0.0, 1.0 / deviation.clamp_min(1e-30)))


def linear_probe(
    train: FeatureSet,
    test: FeatureSet,
    *,
    classes: int,
    epochs: int = EPOCHS,
    lrs: Sequence[float] = LRS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    batch: int = 256,
    seed: int = 0,
    device: torch.device | None = None,
) -> LinearResult:
    """Return how well a linear head separates the classes of frozen features.

    batch: rows per step. seed: draws the held-out part and the order of the rows. device: where the
    heads are trained; the features stay on the CPU and move batch by batch. Raises DataError when
    no class has the two training samples that choosing needs.
    """
    recipe = _Recipe(classes, epochs, batch, seed, device or torch.device("cpu"))
    grid = list(itertools.product(lrs, weight_decays))
    fit, held_out = stratified_split(train.labels, share=HELD_OUT, seed=seed)
    every = torch.arange(train.labels.shape[0])
    steps = (math.ceil(len(fit) / batch) + math.ceil(len(every) / batch)) * epochs
    with Progress(steps, label="linear heads", unit="steps") as progress:
        shift, heads = _train(train, fit, grid=grid, recipe=recipe, progress=progress)
        trials = _evaluate(train, held_out, grid=grid, shift=shift, heads=heads, recipe=recipe)
        best = max(trials, key=lambda trial: (trial.top1, -trial.nll))
        chosen = [(best.lr, best.weight_decay)]
        shift, heads = _train(train, every, grid=chosen, recipe=recipe, progress=progress)
    head = Head(heads.weight[:, 0].T, heads.bias[0])
    logits = scores_of(head, test.features, shift=shift, device=recipe.device)
    return LinearResult(
        metrics=from_logits(logits, test.labels, classes=classes),
        lr=best.lr,
        weight_decay=best.weight_decay,
        trials=tuple(trials),
        lr_at_edge=len(set(lrs)) > 1 and best.lr in (min(lrs), max(lrs)),
        head=shift.folded(head),
        predictions=predictions(logits, test.labels),
    )


def scores_of(head: Head, features: Tensor, *, shift: Standardiser, device: torch.device) -> Tensor:
    """Return the (N, K) scores of (N, D) features by a head of standardised ones, on the CPU."""
    return torch.cat([head(shift(part.to(device))).cpu() for part in features.split(_ROWS)])


def check_counts(counts: Sequence[int], *, subset: str = "") -> None:
    """Raise DataError if no class has two training samples. counts: of each class, in a subset."""
    if max(counts, default=0) < 2:
        within = f" in the subset {subset}" if subset else ""
        remedy = "choose a larger subset" if subset else "add training images"
        raise DataError(
            f"linear evaluation: none of the {len(counts)} classes has two training samples"
            f"{within}, and choosing a head needs one to fit and one to judge; {remedy}"
        )


def stratified_split(labels: Tensor, *, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the row numbers to fit on and those held out, both ascending (N,) int64.

    Of each class's n samples ``round(share * n)`` are held out, at least one, and none of a class
    with a single sample. Raises DataError when that leaves nothing.
    """
    keys = uniforms(seed, 0, np.arange(labels.shape[0]), view=0, purpose=ORDER, count=1)[:, 0]
    order = np.lexsort((keys, labels.numpy()))
    held_out = np.zeros(labels.shape[0], dtype=bool)
    ends = np.cumsum(np.bincount(labels.numpy()))
    for rows in np.split(order, ends[:-1]):
        if len(rows) > 1:
            held_out[rows[: max(1, round(share * len(rows)))]] = True
    check_counts(np.bincount(labels.numpy()).tolist())
    mask = torch.from_numpy(held_out)
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]


def _train(
    data: FeatureSet,
    rows: Tensor,
    *,
    grid: Sequence[tuple[float, float]],
    recipe: _Recipe,
    progress: Progress,
) -> tuple[Standardiser, Heads]:
    """Return the standardiser of the given rows and one trained head per grid point.

    SGD with Nesterov momentum (torch.optim.SGD's form) from zero weights, the rate falling to zero
    by a half cosine over all steps, decay on weights only. The gradient of softmax cross entropy is
    written out, since heads of different rates then need neither autograd nor an optimizer each.
    """
    device, classes, epochs = recipe.device, recipe.classes, recipe.epochs
    shift = standardiser(data.features[rows].to(device))
    lr, decay = torch.tensor(grid, device=device).T[:, None, :, None]  # (1, G, 1) each
    weight = torch.zeros(data.features.shape[1], len(grid), classes, device=device)
    bias = torch.zeros(len(grid), classes, device=device)
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    total, step = epochs * math.ceil(len(rows) / recipe.batch), 0
    heads = Heads(weight, bias)
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(recipe.seed, epoch, len(rows)))
        for index in rows[order].split(recipe.batch):
            inputs = shift(data.features[index].to(device))
            truth = functional.one_hot(data.labels[index].to(device), classes)
            error = (heads(inputs).softmax(-1) - truth[:, None]) / inputs.shape[0]
            gradient = matmul(inputs.T, error.flatten(1)).view_as(weight).add_(decay * weight)
            rate = lr * (0.5 * (1.0 + math.cos(math.pi * step / total)))
            _descend(weight, gradient, velocity, rate=rate)
            _descend(bias, error.sum(0), bias_velocity, rate=rate[0])
            step += 1
            progress.advance()
    return shift, heads


def _descend(value: Tensor, gradient: Tensor, velocity: Tensor, *, rate: Tensor) -> None:
    velocity.mul_(MOMENTUM).add_(gradient)
    value.sub_(rate * gradient.add(velocity, alpha=MOMENTUM))


def _evaluate(
    data: FeatureSet,
    rows: Tensor,
    *,
    grid: Sequence[tuple[float, float]],
    shift: Standardiser,
    heads: Heads,
    recipe: _Recipe,
) -> list[Trial]:
    """Return each head's top-1 and mean negative log-likelihood on the given rows."""
    correct = torch.zeros(len(grid), dtype=torch.float64)
    nll = torch.zeros(len(grid), dtype=torch.float64)
    for index in rows.split(recipe.batch):
        labels = data.labels[index]
        logits = (
            heads(shift(data.features[index].to(recipe.device))).transpose(0, 1).cpu()
        )  # (G, B, K)
        correct += (outranked(logits, labels) < 1).double().sum(1)
        truth = labels[:, None].expand(len(grid), -1, 1)
        nll -= logits.log_softmax(-1).gather(-1, truth)[..., 0].double().sum(1)
    nll = torch.where(torch.isfinite(nll), nll / len(rows), torch.inf)
    return [
        Trial(lr=lr, weight_decay=decay, top1=100.0 * float(right) / len(rows), nll=float(loss))
        for (lr, decay), right, loss in zip(grid, correct, nll, strict=True)
    ]
