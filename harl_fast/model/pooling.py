"""Pooling of a feature map over a region, and what a cell of a mask weighs."""

from __future__ import annotations

import torch
from torch import Tensor

from harl_fast.errors import ConfigError, nearest
from harl_fast.model.precision import widened, without_autocast

MASK_MODES = ("soft", "area", "any")


def cell_weight(coverage: Tensor, *, mode: str, threshold: float = 0.5) -> Tensor:
    """Return each cell's foreground weight in [0, 1]; the background's is one minus it.

    coverage: (..., h, w), share of the cell's area under the mask. mode: soft keeps the coverage;
    area gives 1 where it reaches ``threshold``; any gives 1 where it is not zero (as the released
    PyTorch code of HARL, which so enlarges a mask of 25 % of the area to 55 % of the cells).
    """
    if mode == "soft":
        return coverage
    if mode == "area":
        return (coverage >= threshold).to(coverage.dtype)
    if mode == "any":
        return (coverage > 0).to(coverage.dtype)
    raise ConfigError(
        f"mask mode '{mode}' is none of {', '.join(MASK_MODES)}{nearest(mode, MASK_MODES)}"
    )


def has_area(weight: Tensor, *, min_area: float) -> Tensor:
    """Return whether weights (..., h, w) cover more than the share ``min_area`` of the map."""
    cells = weight.flatten(-2)
    return cells.sum(-1) > min_area * cells.shape[-1]


def masked_mean(features: Tensor, weight: Tensor, *, min_area: float) -> tuple[Tensor, Tensor]:
    """Return each sample's weighted mean feature, and whether its region had enough area.

    features: (B, D, h, w). weight: (B, h, w) in [0, 1].
    min_area: share of the map that the weights must exceed.
    Returns (B, D) float32 (float64 from float64) and (B,) bool. A row that is False must leave the
    loss; it holds the mean of the whole map, so that the rows beside it in a head's BatchNorm see
    ordinary statistics rather than zeros.
    """
    with without_autocast(features):
        values = widened(features).flatten(2)
        weight = weight.to(values.dtype)
        usable = has_area(weight, min_area=min_area)
        cells = torch.where(usable[:, None], weight.flatten(1), 1.0)
        # Divided by the true area: the released code's area + 1 shrinks small regions.
        mean = torch.einsum("bdn,bn->bd", values, cells) / cells.sum(1, keepdim=True)
    return mean, usable


def global_mean(features: Tensor) -> Tensor:
    """Return the (B, D) mean over the cells of a (B, D, h, w) map, in float32 or wider."""
    return widened(features).mean((2, 3))
