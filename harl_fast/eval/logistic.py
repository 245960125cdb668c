"""The `logreg` protocol: C chosen on held-out training rows, then fitted on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harl_fast.eval.features import FeatureSet
from harl_fast.eval.linear import (
    HELD_OUT,
    ProbeResult,
    Standardiser,
    scores_of,
    standardiser,
    stratified_split,
)
from harl_fast.eval.logreg import CS, Optimum, optima
from harl_fast.eval.metrics import from_logits, outranked, predictions
from harl_fast.files import Progress, to_stderr

SWEEP_TOLERANCE = 1e-4
"""Of the optima between which held-out rows choose; the chosen one's is `logreg.TOLERANCE`."""


@dataclass(frozen=True)
class LogisticTrial:
    """The optimum for one C, judged on the held-out part of the training set."""

    c: float
    top1: float
    """Percent."""
    nll: float
    """Mean negative log-likelihood in nats."""
    objective: float
    converged: bool
    evaluations: int
    """Passes over the training rows that it took."""


@dataclass(frozen=True, kw_only=True)
class LogisticResult(ProbeResult):
    """The head that `logistic_probe` chose among `LogisticTrial` records."""

    c: float
    c_at_edge: bool
    """The chosen C is the lowest or highest that was tried."""

    def choice(self) -> dict[str, Any]:
        """Return the chosen setting."""
        return {"c": self.c, "c_at_edge": self.c_at_edge}

    def explain(self) -> str:
        """Return the choice in words."""
        edge = " (the edge of what was tried: a wider range may do better)"
        return (
            f"logistic regression with C {self.c:.3g}, chosen on held-out training images"
            f"{edge if self.c_at_edge else ''}"
        )


def logistic_probe(
    train: FeatureSet,
    test: FeatureSet,
    *,
    classes: int,
    cs: Sequence[float] = CS,
    seed: int = 0,
    device: torch.device | None = None,
) -> LogisticResult:
    """Return how well logistic regression at its optimum separates the classes of features.

    Features are standardised by the training rows. Each C is solved on nine tenths of each class's
    training rows (drawn by ``seed``) and judged on the rest; the one of the highest top-1, of equal
    ones the likeliest, is solved again on all of them. device: where that is computed. Raises
    DataError where there is nothing to choose by, see `stratified_split`, and for one class.
    """
    device = device or torch.device("cpu")
    fit, held_out = stratified_split(train.labels, share=HELD_OUT, seed=seed)
    trials: list[LogisticTrial] = []
    best, chosen = (-1.0, 0.0), None
    with Progress(len(cs) + 1, label="logistic regression", unit="fits", least_s=10.0) as progress:
        shift = standardiser(train.features[fit].to(device))
        rows, labels = _rows(train, fit, shift, device)
        for found in optima(rows, labels, classes=classes, cs=cs, tolerance=SWEEP_TOLERANCE):
            trial = _judged(found, train, held_out, shift=shift, device=device)
            trials.append(trial)
            if (trial.top1, -trial.nll) > best or chosen is None:
                best, chosen = (trial.top1, -trial.nll), found
            progress.advance()
        assert chosen is not None
        shift = standardiser(train.features.to(device))
        rows, labels = _rows(train, torch.arange(len(train.labels)), shift, device)
        (last,) = optima(rows, labels, classes=classes, cs=[chosen.c], start=chosen.head)
        progress.advance()
    fits = [*((t.c, t.converged) for t in trials), (last.c, last.converged)]
    if unfinished := [f"{c:.3g}" for c, converged in fits if not converged]:
        to_stderr(f"note: not at their optimum within rounding: C {', '.join(unfinished)}")
    logits = scores_of(last.head, test.features, shift=shift, device=device)
    return LogisticResult(
        metrics=from_logits(logits, test.labels, classes=classes),
        c=chosen.c,
        trials=tuple(trials),
        c_at_edge=len(cs) > 1 and chosen.c in (min(cs), max(cs)),
        head=shift.folded(last.head),
        predictions=predictions(logits, test.labels),
    )


def _rows(
    data: FeatureSet, rows: Tensor, shift: Standardiser, device: torch.device
) -> tuple[Tensor, Tensor]:
    return shift(data.features[rows].to(device)), data.labels[rows].to(device)


def _judged(
    found: Optimum,
    data: FeatureSet,
    rows: Tensor,
    *,
    shift: Standardiser,
    device: torch.device,
) -> LogisticTrial:
    labels = data.labels[rows]
    logits = scores_of(found.head, data.features[rows], shift=shift, device=device)
    losses = -logits.log_softmax(1).gather(1, labels[:, None]).double()
    return LogisticTrial(
        c=found.c,
        top1=100.0 * float((outranked(logits, labels) < 1).double().mean()),
        nll=float(losses.mean()),
        objective=found.objective,
        converged=found.converged,
        evaluations=found.evaluations,
    )
