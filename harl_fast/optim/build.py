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

    Weight decay is in the groups. trust and formula are LARS's; adamw uses ``lr`` alone.
    Raises ConfigError for an unknown name or an impossible value.
    """
    if nesterov and momentum == 0.0:
        raise ConfigError("optim.nesterov needs a momentum above 0; raise it or drop nesterov")
    if name == "lars":
        return LARS(
            groups, lr=lr, momentum=momentum, nesterov=nesterov, trust=trust, formula=formula
        )
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, foreach=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, foreach=True)
    raise ConfigError(
        f"optimizer '{name}' is none of {', '.join(OPTIMIZERS)}{nearest(name, OPTIMIZERS)}"
    )
