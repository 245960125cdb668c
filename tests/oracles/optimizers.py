"""LARS in its three published forms, and the moving average; one tensor at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _norm(values: Array) -> float:
    return float(np.sqrt((values.astype(np.float64) ** 2).sum()))


def byol(
    w: Array,
    g: Array,
    v: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust: float,
    adapt: bool,
    nesterov: bool,
) -> tuple[Array, Array]:
    """Decay, adapt, accumulate, then scale by the rate (BYOL's chain of transformations)."""
    if _norm(g) == 0.0:
        update = np.zeros_like(g)  # this project's rule
    else:
        update = g + weight_decay * w
        if adapt and _norm(w) > 0 and _norm(update) > 0:
            update = update * (trust * _norm(w) / _norm(update))
    v = momentum * v + update
    return w - lr * (update + momentum * v if nesterov else v), v


def simclr(
    w: Array,
    g: Array,
    v: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust: float,
    adapt: bool,
    nesterov: bool,
) -> tuple[Array, Array]:
    """Classic momentum: the rate enters the velocity (SimCLR's LARSOptimizer)."""
    if _norm(g) == 0.0:
        scaled = np.zeros_like(g)  # this project's rule
    else:
        decayed = g + weight_decay * w
        ratio = 1.0
        if adapt and _norm(w) > 0 and _norm(decayed) > 0:
            ratio = trust * _norm(w) / _norm(decayed)
        scaled = lr * ratio * decayed
    v = momentum * v + scaled
    return w - (momentum * v + scaled if nesterov else v), v


def solo_learn(
    w: Array,
    g: Array,
    v: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust: float,
    adapt: bool,
    nesterov: bool,
) -> tuple[Array, Array]:
    """The wrapper's local rate from separate norms, around SGD with momentum."""
    if adapt and _norm(w) != 0 and _norm(g) != 0:
        rate = trust * _norm(w) / (_norm(g) + _norm(w) * weight_decay + 1e-8)
        g = (g + weight_decay * w) * rate
    v = momentum * v + g
    return w - lr * (g + momentum * v if nesterov else v), v


LARS = {"byol": byol, "simclr": simclr, "solo-learn": solo_learn}


def moving_average(target: Array, online: Array, *, tau: float) -> Array:
    """Return BYOL's target update."""
    return tau * target + (1 - tau) * online
