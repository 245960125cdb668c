"""Schedules as the papers and the released code print them."""

from __future__ import annotations

from math import cos, pi


def learning_rate(k: int, total: int, warmup: int, peak: float) -> float:
    """Return BYOL's rate: linear warm-up, then a cosine over the remaining steps."""
    if k < warmup:
        return k / warmup * peak
    return peak * 0.5 * (1 + cos(pi * (k - warmup) / (total - warmup)))


def tau(k: int, total: int, base: float) -> float:
    """Return BYOL's decay of the moving average."""
    return 1 - (1 - base) * (cos(pi * k / total) + 1) / 2


def alpha(x: float) -> float:
    """Return HARL's released cosine for alpha, from 0.6 to 1."""
    return 1 - (1 - 0.6) * (1 + cos(pi * x)) / 2


def beta(x: float) -> float:
    """Return HARL's released cosine for beta, from 0.6 to 0."""
    return 0.6 * (1 + cos(pi * x)) / 2


def alpha_steps(x: float) -> float:
    """Return HARL's released steps for alpha."""
    if x < 0.3:
        return 0.5
    return 0.8 if x < 0.9 else 1.0


def beta_steps(x: float) -> float:
    """Return HARL's released steps for beta."""
    if x < 0.5:
        return 0.6
    return 0.4 if x < 0.7 else 0.2
