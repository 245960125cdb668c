"""How long the weights are and how far one optimizer step moved them, for any optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class StepNorms:
    """Measures the steps it is armed for, on the tensors that the optimizer holds.

    It hooks into `Optimizer.step`: the weights before are copied when the step begins and the
    activations are gone, so that the copy adds nothing to the peak of memory. Under ZeRO the
    optimizer holds shards and is called once a group: squares are of this rank's shards.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.armed = False
        self._before: list[Tensor] = []
        self._squares: list[Tensor] = []
        optimizer.register_step_pre_hook(self._copy)
        optimizer.register_step_post_hook(self._compare)

    @torch.no_grad()
    def _copy(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.armed:
            self._before = [p.detach().clone() for p in _tensors(optimizer)]

    @torch.no_grad()
    def _compare(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.armed and self._before:
            tensors = _tensors(optimizer)
            weights = _square(tensors)
            torch._foreach_sub_(self._before, tensors)
            self._squares.append(torch.stack([weights, _square(self._before)]))
            self._before = []

    def take(self) -> dict[str, Tensor]:
        """Return "weight_sq" and "update_sq" of the steps since the last call, 0-d float64.

        The sums of squares over this rank's tensors of the weights after the step and of what it
        changed; empty if no step was measured.
        """
        if not self._squares:
            return {}
        weights, updates = torch.stack(self._squares).sum(0).unbind()
        self._squares = []
        return {"weight_sq": weights, "update_sq": updates}


def _tensors(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
