"""Mixed precision around an fp32 engine: autocast networks, and the loss scale that fp16 needs.

Parameters, BatchNorm, LARS and the target network stay fp32. DeepSpeed's own casting modes are
not used: they cast BatchNorm's weights, and their fp16 paths disagree over ranks about overflow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harl_fast.engine.config import Fp16Section, Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The number format of the networks' activations; fp32 has none."""


class Autocast(nn.Module):
    """A module whose forward pass runs under `torch.autocast`; fp32 runs as it is."""

    def __init__(self, module: nn.Module, *, precision: Precision) -> None:
        super().__init__()
        self.module = module
        self.dtype = AUTOCAST.get(precision)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns."""
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            return self.module(*args, **kwargs)


class LossScale:
    """The factor that keeps fp16 gradients from vanishing, adapted without waiting for the device.

    Multiply the loss with `factor`; gradients are divided again just before the optimizer reads
    them, after the reduction over ranks. Whether a step overflowed, the optimizer says
    from reduced norms, so all ranks change the factor alike.
    """

    def __init__(self, section: Fp16Section, *, device: torch.device) -> None:
        self._section = section
        start = section.loss_scale or 2.0**section.initial_scale_power
        self.lowest = None if section.loss_scale else float(section.min_loss_scale)
        """The least that a dynamic factor becomes; None if it is constant."""
        self.factor = torch.full((), start, dtype=torch.float32, device=device)
        self._good = torch.zeros((), dtype=torch.int64, device=device)
        self._left = torch.full((), section.hysteresis, dtype=torch.int64, device=device)

    def attach(self, optimizer: Optimizer) -> None:
        """Make the optimizer see gradients without the factor, at every ZeRO stage."""
        optimizer.register_step_pre_hook(self._unscale)

    def _unscale(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        torch._foreach_mul_(gradients, self.factor.reciprocal())

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Adapt the factor to one step's outcome; the rule is DeepSpeed's dynamic scaler's.

        applied: () bool, False if the step overflowed. The `hysteresis`-th overflow and every
        later one halve the factor; `loss_scale_window` good steps in a row double it.
        """
        if self._section.loss_scale:
            return
        halve = ~applied & (self._left <= 1)
        self._left -= (~applied & ~halve).long()
        self._good = torch.where(applied, self._good + 1, 0)
        double = applied & (self._good % self._section.loss_scale_window == 0)
        refill = applied if self._section.consecutive_hysteresis else double
        self._left = torch.where(refill, self._section.hysteresis, self._left)
        low = (self.factor / 2).clamp_min(float(self._section.min_loss_scale))
        self.factor = torch.where(halve, low, torch.where(double, self.factor * 2, self.factor))

    def state(self) -> dict[str, Tensor]:
        """Return the three counters as tensors of shape ()."""
        return {"factor": self.factor, "good": self._good, "left": self._left}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        device = self.factor.device
        self.factor, self._good, self._left = (
            state[name].to(device) for name in ("factor", "good", "left")
        )
