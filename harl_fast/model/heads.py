"""Projector and predictor."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from harl_fast.model.norm import GroupedBatchNorm1d


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
