"""Optimizer and moving average alone, on the tensors of a ResNet-50 with HARL's heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import step_setup as setup
from harl_fast.engine.networks import build_model
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.model.harl import HARL
from harl_fast.optim.groups import param_groups
from harl_fast.optim.lars import LARS

LR, MOMENTUM, TRUST = 1e-3, 0.9, 1e-3


class SoloLearnLARS(torch.optim.Optimizer):
    """solo-learn's LARS from its published formula, parameter by parameter as it is published.

    With |w| and |g| of a parameter that is not excluded and neither of them 0:
    ratio = trust |w| / (|g| + decay |w| + eps);  d = ratio (g + decay w);  then SGD with momentum.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        for group in self.param_groups:
            for p in group["params"]:
                d = p.grad
                if group["adapt"]:
                    w_norm, g_norm = torch.norm(p), torch.norm(d)
                    if w_norm != 0 and g_norm != 0:
                        ratio = w_norm / (g_norm + w_norm * group["weight_decay"] + 1e-8)
                        d = d.add(p, alpha=group["weight_decay"])
                        d *= ratio * TRUST
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = d.clone()
                else:
                    state["momentum_buffer"].mul_(MOMENTUM).add_(d)
                p.add_(state["momentum_buffer"], alpha=-group["lr"])


def _optimizer(name: str, harl: HARL) -> torch.optim.Optimizer:
    groups = param_groups(harl, weight_decay=setup.DECAY)
    if name == "ours":
        return LARS(groups, lr=LR, momentum=MOMENTUM, trust=TRUST)
    if name == "solo":
        for group in groups:
            group["adapt"] = group.pop("lars")
        return SoloLearnLARS(groups, {"lr": LR, "weight_decay": 0.0})
    from lightly.utils.lars import LARS as LightlyLARS

    optimizer: torch.optim.Optimizer = LightlyLARS(
        groups, lr=LR, momentum=MOMENTUM, trust_coefficient=TRUST
    )
    return optimizer


def _lars(name: str, harl: HARL) -> Callable[[], None]:
    """Return one optimizer step. Gradients stay: a step that overwrites them still reads all."""
    optimizer = _optimizer(name, harl)
    generator = torch.Generator().manual_seed(1)
    for p in harl.parameters():
        p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3).to(p.device)
    return lambda: optimizer.step()


def _loop(target: list[Tensor], online: list[Tensor]) -> None:
    """Move the target parameter by parameter, with the formula as it is usually written."""
    with torch.no_grad():
        for follower, leader in zip(target, online, strict=True):
            follower.data = setup.TAU * follower.data + (1 - setup.TAU) * leader.data


def _loop_in_place(target: list[Tensor], online: list[Tensor]) -> None:
    with torch.no_grad():
        for follower, leader in zip(target, online, strict=True):
            follower.mul_(setup.TAU).add_(leader, alpha=1 - setup.TAU)


def _ema(name: str, harl: HARL) -> Callable[[], None]:
    target, online = ema_pairs(harl.target, harl)
    if name == "ours":
        return lambda: ema_update(target, online, tau=setup.TAU)
    if name == "loop":
        return lambda: _loop(target, online)
    if name == "place":
        return lambda: _loop_in_place(target, online)
    from lightly.models.utils import update_momentum

    def follow() -> None:
        update_momentum(harl.backbone, harl.target.backbone, m=setup.TAU)
        update_momentum(harl.projector, harl.target.projector, m=setup.TAU)

    return follow


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (1, figures) per step for ever. settings: what (lars, ema), name, threads."""
    setup.quiet_threads(settings)
    harl = build_model(setup.run_config("byol+f_loss", arch="resnet50"))
    make = {"lars": _lars, "ema": _ema}[settings["what"]]
    step = make(settings["name"], harl)
    count = sum(p.numel() for p in harl.parameters())
    network = harl.target if settings["what"] == "ema" else harl
    while True:
        step()
        figures = {"parameters": count, "norm": _norm(network)} if settings.get("watched") else {}
        yield 1, figures


def _norm(network: nn.Module) -> float:
    return float(torch.stack([p.detach().double().norm() for p in network.parameters()]).norm())
