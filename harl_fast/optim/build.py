"""The optimizers by name."""

from __future__ import annotations

import torch

from harl_fast.errors import ConfigError, nearest
from harl_fast.optim.groups import ParamGroup
from harl_fast.optim.lars import LARS

OPTIMIZERS = ("lars", "sgd", "adamw")


def build_optimizer(
    name: str,
    groups: list[ParamGroup],
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 1e-3,
    formula: str = "byol",
) -> torch.optim.Optimizer:
    """Return the optimizer ``name`` (lars, sgd or adamw) over groups from `groups.param_groups`.

    Weight decay is in the groups. trust and formula are LARS's; adamw uses ``lr`` alone. sgd and
    adamw are torch's fused ones: while their attribute ``found_inf`` is a 0-d float32 of 1, a step
    changes nothing, without waiting for the device.
    Raises ConfigError for an unknown name or an impossible value.
    """
    if nesterov and momentum == 0.0:
        raise ConfigError("optim.nesterov needs a momentum above 0; raise it or drop nesterov")
    if name == "lars":
        return LARS(
            groups, lr=lr, momentum=momentum, nesterov=nesterov, trust=trust, formula=formula
        )
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    raise ConfigError(
        f"optimizer '{name}' is none of {', '.join(OPTIMIZERS)}{nearest(name, OPTIMIZERS)}"
    )


def state_shapes(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor
) -> dict[str, torch.Size]:
    """Return the names and shapes of the states that an optimizer keeps for a whole parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
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
