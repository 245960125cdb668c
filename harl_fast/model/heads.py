"""Projector and predictor, and linear classifiers."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.errors import ConfigError
from harl_fast.model.norm import GroupedBatchNorm1d
from harl_fast.model.precision import widened, without_autocast


class MLPHead(nn.Module):
    """A multi-layer perceptron: (Linear, BatchNorm, ReLU) layers, then a Linear without bias.

    As in BYOL (Grill et al., arXiv 2006.07733, appendix C and its code), whose heads have two
    layers; ``layers`` counts the linear ones.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, layers: int = 2) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (layers - 1)]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(GroupedBatchNorm1d(width) for width in widths[1:])
        self.out = nn.Linear(widths[-1], out_dim, bias=False)

    def forward(self, x: Tensor, *, groups: int = 1) -> Tensor:
        """Return (G * B, out_dim) from (G * B, in_dim), each group with its own statistics."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = functional.relu(norm(linear(x), groups=groups))
        out: Tensor = self.out(x)
        return out


def first_layers(projector: MLPHead, selector: int) -> MLPHead:
    """Return a copy of a projector up to its ``selector``-th hidden ReLU, or for -1 all of it.

    SimCLR's ``ft_proj_selector`` (Chen et al., arXiv 2006.10029, section 2.2). Raises ConfigError
    for a layer that the projector lacks.
    """
    hidden = len(projector.linears)
    if selector != -1 and not 1 <= selector <= hidden:
        raise ConfigError(
            f"ft_proj_selector {selector} is beyond the projector, which has {hidden} hidden "
            f"layer{'s' * (hidden != 1)}: use 0 (none of it), 1 to {hidden}, or -1 (its output)"
        )
    kept = copy.deepcopy(projector)
    if selector != -1:
        kept.linears, kept.norms = kept.linears[:selector], kept.norms[:selector]
        kept.out = nn.Identity()  # type: ignore[assignment]
    return kept


class LinearHeads(nn.ModuleList):
    """G linear classifiers of the same rows, computed as one product in float32."""

    def __init__(self, in_dim: int, classes: int, *, count: int = 1, zero: bool = True) -> None:
        """zero: start at 0; else all at the same draw of N(0, 0.01), with biases of 0."""
        super().__init__(nn.Linear(in_dim, classes) for _ in range(count))
        weight = torch.zeros(classes, in_dim) if zero else torch.randn(classes, in_dim) * 0.01
        with torch.no_grad():
            for head in self:
                head.weight.copy_(weight)
                head.bias.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, G, K) logits of (B, D) rows."""
        weights, biases = ([getattr(head, n) for head in self] for n in ("weight", "bias"))
        with without_autocast(rows):
            logits = functional.linear(widened(rows), torch.cat(weights), torch.cat(biases))
        return logits.unflatten(1, (len(self), -1))
