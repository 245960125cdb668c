"""Pooling, distances and the five losses, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def masked_mean(features: Array, weight: Array, *, min_area: float) -> tuple[Array, Array]:
    """Return (B, D) means of (B, D, h, w) maps, and (B,) whether the weights' area sufficed."""
    means, usable = [], []
    for sample, mask in zip(features, weight, strict=True):
        enough = mask.sum() / mask.size > min_area
        mask = mask if enough else np.ones_like(mask)
        means.append([(channel * mask).sum() / mask.sum() for channel in sample])
        usable.append(enough)
    return np.array(means), np.array(usable)


def byol_distance(p: Array, z: Array) -> Array:
    """Return the squared distance of the two unit vectors of each row (BYOL, equation 2)."""
    unit_p = np.array([row / math.sqrt(sum(v * v for v in row)) for row in p])
    unit_z = np.array([row / math.sqrt(sum(v * v for v in row)) for row in z])
    squares: Array = ((unit_p - unit_z) ** 2).sum(1)
    return squares


def byol_sum(p: Sequence[Array], z: Sequence[Array], usable: npt.NDArray[np.bool_]) -> float:
    """Return BYOL's loss, the sum of the loss and its twin with the views exchanged."""
    rows = byol_distance(p[0], z[1]) + byol_distance(p[1], z[0])
    return float(sum(value for value, counts in zip(rows, usable, strict=True) if counts)) / len(
        rows
    )


def mean_over_pairs(
    p: Sequence[Array],
    z: Sequence[Array],
    usable: Sequence[npt.NDArray[np.bool_]],
    *,
    temperature: float | None = None,
) -> float:
    """Return twice the mean, over all pairs of a view and another one that the target saw.

    What is meant is the batch's mean of BYOL's distance or, given a temperature, of InfoNCE among
    the rows that count. p, usable: of all views. z: of the first ones.
    """
    total, pairs = 0.0, 0
    for online in range(len(p)):
        for target in range(len(z)):
            if online == target:
                continue
            rows = [b for b in range(len(p[0])) if usable[online][b] and usable[target][b]]
            one, other = p[online][rows], z[target][rows]
            if temperature is not None:
                found = infonce(one, other, temperature=temperature)
            else:
                found = float(byol_distance(one, other).sum()) if rows else 0.0
            total, pairs = total + found / len(p[0]), pairs + 1
    return 2.0 * total / pairs


def total(loss_type: str, terms: dict[str, float], *, alpha: float, beta: float) -> float:
    """Return the loss from the terms w, f and b, as the method's table of losses writes it."""
    w, f, b = (terms.get(name, math.nan) for name in ("whole", "fg", "bg"))
    if loss_type == "byol":
        return w
    if loss_type == "f_loss":
        return f
    if loss_type == "f_loss+b_loss":
        return alpha * f + (1 - alpha) * b
    if loss_type == "byol+f_loss":
        return beta * w + (1 - beta) * f
    if loss_type == "byol+f_loss+b_loss":
        return beta * w + (1 - beta) * (alpha * f + (1 - alpha) * b)
    raise AssertionError(loss_type)


def vicreg_spread(q: Array) -> float:
    """Return VICReg's variance and covariance terms in the proportion 25 : 1, over 25.

    As facebookresearch/vicreg's main_vicreg.py writes them, for one view.
    """
    centred = q - q.mean(0)
    deviation = np.sqrt(q.var(0, ddof=1) + 1e-4)
    covariance = centred.T @ centred / (len(q) - 1)
    off_diagonal = covariance[~np.eye(q.shape[1], dtype=bool)]
    return float(
        np.maximum(0.0, 1.0 - deviation).mean() + (off_diagonal**2).sum() / q.shape[1] / 25.0
    )


def infonce(p: Array, z: Array, *, temperature: float) -> float:
    """Return the sum over rows of minus the log share that the row's own ``z`` gets."""
    total = 0.0
    for own, prediction in enumerate(p):
        cosines = z @ prediction / np.linalg.norm(z, axis=1) / np.linalg.norm(prediction)
        shares = np.exp(cosines / temperature)
        total -= float(np.log(shares[own] / shares.sum()))
    return total
