"""LARS that stays exact when its tensors are flat shards, as under ZeRO stages 1 and 2.

LARS scales each parameter's step by |w| / |g|, see `optim.formula`. Under ZeRO the optimizer holds
one flat shard per group, in which a parameter is a slice, or is split over ranks. `LARS.bind` tells
which slice belongs to which parameter; a step then sums the squared norms of the slices, adds them
over the ranks in one all-reduce, and scales each slice by its parameter's ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.sgd import sgd

from harl_fast.errors import ConfigError, nearest
from harl_fast.optim.formula import FORMULAS, split_rate, trust_ratio
from harl_fast.optim.layout import GroupLayout, GroupPlan, plan_of_shard, plan_of_tensors
from harl_fast.optim.sweep import Sweep, sweep_of
from harl_fast.options import check_finite


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, in the three published forms of `optim.formula`.

    Norms are of whole parameters. The ratio is 1 in groups whose ``lars`` is False.

    A step with a norm that is not finite leaves weights and momentum as they were. It is decided
    on the device, equally on all ranks of a bound group; ``applied`` tells the outcome.
    A missing gradient counts as 0, as in a flat shard. `step` may overwrite gradients.
    """

    applied: Tensor
    """0-d bool: whether every call of `step` since `begin_step` was applied. Made False between
    the two by a caller that has seen a broken gradient, it rejects the whole step: where `step` is
    called once per group, only such a check of all gradients keeps the first groups from moving."""

    def __init__(
        self,
        params: Iterable[Any],  # tensors or groups, as torch's optimizers take
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        formula: str = "byol",
        nesterov: bool = False,
    ) -> None:
        """Set up the groups, whose keys of these names come first.

        lr, weight_decay, trust: from 0 on. momentum: 0 to 1. formula: a key of `FORMULAS`. Raises
        ConfigError for other values.
        """
        if formula not in FORMULAS:
            raise ConfigError(
                f"LARS formula '{formula}' is none of {', '.join(FORMULAS)}"
                f"{nearest(formula, FORMULAS)}"
            )
        check_finite(math.inf, lr=lr, weight_decay=weight_decay, trust=trust)
        check_finite(1.0, momentum=momentum)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "formula": formula,
            "nesterov": nesterov,
            "lars": True,
        }
        super().__init__(params, defaults)
        for number, group in enumerate(self.param_groups):
            group.setdefault("name", f"group{number}")
        self._plans: dict[str, GroupPlan] = {}
        self._last: dict[str, Tensor] = {}
        self.init_state()
        self.begin_step()

    def bind(self, layouts: Sequence[GroupLayout]) -> None:
        """Declare that each group's one tensor is a flat shard laid out as the layout says.

        layouts: one per group, in the order of ``param_groups``. Groups are remembered by their
        ``name``: ZeRO calls `step` once per group, with ``param_groups`` cut down to that group.
        """
        plans = {}
        for group, layout in zip(self.param_groups, layouts, strict=True):
            (shard,) = group["params"]
            plans[group["name"]] = plan_of_shard(shard, layout)
        if len(plans) < len(layouts):
            raise ValueError("LARS.bind: two parameter groups have the same name")
        self._plans = plans
        self.init_state()
        self.begin_step()

    def init_state(self) -> None:
        """Give every tensor of the groups a momentum buffer like itself; drop other state.

        Buffers that fit are kept, others copied. To be called again when tensors have moved.
        """
        tensors = [p for group in self.param_groups for p in group["params"]]
        buffers = {p: self.state[p].get("momentum_buffer") for p in tensors}
        self.state.clear()
        for p, old in buffers.items():
            self.state[p] = {"momentum_buffer": _buffer_like(p, old)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore as torch's optimizers do; buffers take their tensors' device and strides."""
        super().load_state_dict(state_dict)
        self.init_state()

    def begin_step(self) -> None:
        """Forget the last optimizer step's outcome.

        Needed before a step that may end without calling `step` at all, as ZeRO's does when it
        sees a norm that is not finite; otherwise the second call for a group implies it.
        """
        device = self.param_groups[0]["params"][0].device
        self.applied = torch.ones((), dtype=torch.bool, device=device)
        self._square = torch.zeros((), dtype=torch.float64, device=device)
        self._stepped: set[str] = set()

    @property
    def grad_norm(self) -> Tensor:
        """0-d float64: norm of the whole gradient, over all calls of `step` since `begin_step`."""
        return self._square.sqrt()

    def ratios(self) -> dict[str, Tensor]:
        """Return by group the last step's ratio of each parameter, (n_params,) float64.

        On the device; of whole parameters and equal on all ranks, also where tensors are shards.
        Groups whose ``lars`` is False hold 1, or 0 where a gradient was exactly 0; so does a group
        that has not stepped yet, by being left out.
        """
        return dict(self._last)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the tensors of all groups in ``param_groups``; see the class.

        With several calls per step (one per group), a call after one that was not applied is not
        applied either, but an earlier one stands; see ``applied``.
        """
        names = {group["name"] for group in self.param_groups}
        if names & self._stepped:
            self.begin_step()
        self._stepped |= names

        work = [self._prepare(group) for group in self.param_groups]
        squares = torch.cat([_squares(item) for item in work], dim=1)
        process_group = work[0].plan.process_group
        if process_group is not None:
            dist.all_reduce(squares, group=process_group)
        self.applied = self.applied & torch.isfinite(squares).all()
        self._square = self._square + squares[1].sum()
        parts = squares.split([item.plan.n_params for item in work], dim=1)
        for item, part in zip(work, parts, strict=True):
            self._update(item, part.sqrt())

    def _prepare(self, group: dict[str, Any]) -> _Work:
        weights = group["params"]
        if group["name"] not in self._plans:
            if group["lars"] and any(p.ndim < 2 for p in weights):
                raise RuntimeError(
                    f"LARS group '{group['name']}' holds a 1-D tensor. If it is a flat shard, call "
                    f"LARS.bind before the first step; if a bias, set the group's 'lars' to False"
                )
            self._plans[group["name"]] = plan_of_tensors(weights)
        plan, grads = self._plans[group["name"]], [_gradient(p) for p in weights]
        buffers = [self.state[p]["momentum_buffer"] for p in weights]
        sweep = sweep_of(plan, weights, grads, buffers) if group["lars"] else None
        return _Work(group, plan, grads, buffers, sweep)

    def _update(self, work: _Work, norms: Tensor) -> None:
        group = work.group
        ratio = trust_ratio(
            *norms,
            adapt=group["lars"],
            trust=group["trust"],
            decay=group["weight_decay"],
            formula=group["formula"],
        )
        self._last[group["name"]] = ratio
        within, lr = split_rate(group["lr"], formula=group["formula"])
        ratio = ratio * within
        rule = {"lr": lr, "momentum": group["momentum"], "nesterov": group["nesterov"]}
        if work.sweep is not None:
            work.sweep.move(ratio, self.applied, decay=group["weight_decay"], **rule)
            return
        segments = work.plan.segments(work.grads)
        if segments:
            factors = ratio[work.plan.owners].to(work.grads[0].dtype)
            torch._foreach_mul_(segments, list(factors.unbind()))
        sgd(
            group["params"],
            work.grads,
            [*work.buffers],
            fused=True,
            # The one form of SGD that skips on the device: a product cannot erase a NaN.
            found_inf=(~self.applied).float(),
            weight_decay=0.0,
            dampening=0.0,
            maximize=False,
            **rule,
        )


@dataclass(frozen=True)
class _Work:
    """What one step does to one group."""

    group: dict[str, Any]
    plan: GroupPlan
    grads: list[Tensor]
    buffers: list[Tensor]
    sweep: Sweep | None
    """The passes that replace operations on all tensors, where they apply."""


def _squares(work: _Work) -> Tensor:
    """Return this rank's share of |w|^2, |g|^2, |d|^2: (3, n_params) float64.

    d replaces g, except in a `Sweep`. Norms that the group's ratios do not ask for are those of g.
    """
    group, plan, grads = work.group, work.plan, work.grads
    decay = group["weight_decay"]
    if work.sweep is not None:
        return work.sweep.squares(decay=decay)
    gradients = decayed = plan.squares(grads)
    if decay:
        torch._foreach_add_(grads, group["params"], alpha=decay)
    if not group["lars"]:
        return torch.stack([gradients] * 3)
    if decay:
        decayed = plan.squares(grads)
    return torch.stack([plan.squares(group["params"]), gradients, decayed])


def _gradient(p: Tensor) -> Tensor:
    """Return the gradient in its tensor's own memory layout; a missing one is 0."""
    if p.grad is None:
        return torch.zeros_like(p)
    if p.grad.stride() == p.stride():
        return p.grad
    return torch.empty_like(p).copy_(p.grad)


def _buffer_like(p: Tensor, old: Tensor | None) -> Tensor:
    """Return ``old`` if it matches p in dtype, device and strides, else a copy, or zeros."""
    if old is None:
        return torch.zeros_like(p)
    if old.shape != p.shape:
        raise ValueError(f"momentum of shape {tuple(old.shape)} for a tensor {tuple(p.shape)}")
    if (old.dtype, old.device, old.stride()) == (p.dtype, p.device, p.stride()):
        return old
    return torch.empty_like(p).copy_(old)
