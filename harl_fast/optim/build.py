"""The optimizers by name."""

from __future__ import annotations

import torch
from torch import nn

from harl_fast.config import OptimConfig
from harl_fast.errors import ConfigError
from harl_fast.optim.groups import ParamGroup, param_groups
from harl_fast.optim.lars import LARS

PREDICTORS = ("predictor", "online_predictor", "region_predictor")
"""The children of `model.harl.HARL` that ``predictor_lr_scale`` is about."""


def build_optimizer(optim: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a section over the groups of ``module``, see `groups.param_groups`.

    As `make_optimizer`. Raises ConfigError for an impossible value.
    """
    if optim.nesterov and optim.momentum == 0.0:
        raise ConfigError("optim.nesterov needs a momentum above 0; raise it or drop nesterov")
    # A factor of 1 makes no groups of its own.
    scale = optim.predictor_lr_scale
    scaled = {} if scale == 1.0 else dict.fromkeys(PREDICTORS, scale)
    return make_optimizer(
        optim.name,
        param_groups(module, weight_decay=optim.weight_decay, scaled=scaled),
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        trust=optim.trust,
        formula=optim.formula,
    )


def make_optimizer(
    name: str,
    groups: list[ParamGroup],
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 1e-3,
    formula: str = "byol",
) -> torch.optim.Optimizer:
    """Return an optimizer: lars, sgd, adam or adamw.

    Its learning rate is the base rate, for the caller to set at each step. All but lars are torch's
    fused ones: while their attribute ``found_inf`` is a 0-d float32 of 1, a step changes nothing,
    without waiting for the device.
    """
    if name in ("adam", "adamw"):
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        return kind(groups, lr=lr, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    return LARS(groups, lr=lr, momentum=momentum, nesterov=nesterov, trust=trust, formula=formula)


def state_shapes(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor
) -> dict[str, torch.Size]:
    """Return the names and shapes of the states that an optimizer keeps for a whole parameter."""
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        return {**shapes, "step": torch.Size()}
    return {"momentum_buffer": parameter.shape} if optimizer.defaults["momentum"] else {}


def init_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD and LARS momentum of zero for the tensors that they hold now.

    SGD would take it from memory as it is if its very first step were skipped on the device. To be
    called once the engine holds the optimizer and the weights have their final layout.
    """
    if isinstance(optimizer, LARS):
        optimizer.init_state()
    elif isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for p in group["params"] if group["momentum"] else []:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
