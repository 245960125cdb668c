"""The formula of LARS (You et al., arXiv 1708.03888), written once.

A step makes of the norms of each whole parameter a `trust_ratio`, and moves each element by `move`.
The sweep over memory compiles `move`; the operations on whole tensors and shards are tested
against it.

Three published forms differ in the ratio and in where the rate enters:

- byol: ratio = trust |w| / |d|;  v = momentum v + ratio d;  w -= lr v
- simclr: the same ratio;  v = momentum v + lr ratio d;  w -= v
- solo-learn: ratio = trust |w| / (|g| + weight_decay |w| + 1e-8), the rest as byol

with d = g + weight_decay w (deepmind-research `byol/utils/optimizers.py`; google-research/simclr
`lars_optimizer.py`; solo-learn `utils/lars.py`). The ratio is 1 where either norm is 0. A parameter
whose gradient is exactly 0 does not move by it, nor decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FORMULAS = ("byol", "simclr", "solo-learn")


def trust_ratio(
    w: Tensor, g: Tensor, d: Tensor, *, adapt: bool, trust: float, decay: float, formula: str
) -> Tensor:
    """Return each parameter's factor on d, (n,), from the norms (n,) of w, g and d.

    adapt: whether the parameters' ratios are LARS's at all; otherwise they are 1.
    """
    ratio = torch.ones_like(w)
    if adapt and formula == "solo-learn":
        ratio = torch.where((w > 0) & (g > 0), trust * w / (g + decay * w + 1e-8), ratio)
    elif adapt:
        ratio = torch.where((w > 0) & (d > 0), trust * w / d, ratio)
    return torch.where(g > 0, ratio, 0.0)


def split_rate(lr: float, *, formula: str) -> tuple[float, float]:
    """Return the parts of the rate within the velocity and outside it."""
    return (lr, 1.0) if formula == "simclr" else (1.0, lr)


def rates(*, lr: float, momentum: float, nesterov: bool) -> tuple[float, float]:
    """Return the factors of `move` on the new velocity and, for Nesterov's form, on the update."""
    return (lr * momentum, lr) if nesterov else (lr, 0.0)


# Of tensors, arrays or numbers: the sweep compiles it for float32 elements.
def move(
    w: Any, g: Any, v: Any, ratio: Any, decay: Any, momentum: Any, along: Any, ahead: Any
) -> tuple[Any, Any]:
    """Return a weight and its velocity after a step.

    ratio: times the part of the rate within the velocity. along, ahead: from `rates`, of the rest.
    """
    d = ratio * (g + decay * w)
    v = momentum * v + d
    return w - (along * v + ahead * d), v
