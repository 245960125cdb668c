"""Which parameters decay and adapt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from harl_fast.options import check_finite

ParamGroup = dict[str, Any]  # torch's own type: tensors, numbers, names


def param_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    heads: Mapping[str, float] | None = None,
    scaled: Mapping[str, float] | None = None,
) -> list[ParamGroup]:
    """Return the trainable parameters of ``module`` as the groups "adapt" and "plain".

    adapt: weights of linear and convolution layers, which LARS adapts (``lars`` True) and which
    decay. plain: everything else, that is biases and the affine parts of norm layers (BYOL,
    section 3.3). heads: factors of the learning rate (``lr_mult``) by the names of classifiers,
    such as "heads.0", each of which becomes two groups, weights that decay and biases: LARS adapts
    neither (SimCLR, `lars_optimizer.py`). scaled: the same factors of other parts, whose weights
    LARS adapts. ``names`` holds each group's parameter names in order. A group without parameters
    is left out. Raises ConfigError for a weight decay below 0.
    """
    check_finite(math.inf, weight_decay=weight_decay)
    adapt: ParamGroup = {"name": "adapt", "lars": True, "weight_decay": weight_decay}
    plain: ParamGroup = {"name": "plain", "lars": False, "weight_decay": 0.0}
    weights = {
        id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | _ConvNd)
    }
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for prefix, factor in {**(scaled or {}), **(heads or {})}.items():
        part = [(name, p) for name, p in named if name.startswith(f"{prefix}.")]
        named = [(name, p) for name, p in named if not name.startswith(f"{prefix}.")]
        for group, chosen in ((adapt, True), (plain, False)):
            own = {**group, "name": f"{prefix} {group['name']}", "lr_mult": factor}
            own["lars"] = chosen and prefix not in (heads or {})
            groups.append(_filled(own, part, weights=weights, chosen=chosen))
    body = [_filled(g, named, weights=weights, chosen=g["lars"]) for g in (adapt, plain)]
    return [group for group in (*body, *groups) if group["params"]]


def _filled(
    group: ParamGroup,
    named: list[tuple[str, nn.Parameter]],
    *,
    weights: set[int],
    chosen: bool,
) -> ParamGroup:
    """Return the group with those parameters that are weights, or with the others."""
    members = [(name, p) for name, p in named if (id(p) in weights) is chosen]
    parts = {"params": [p for _, p in members], "names": [name for name, _ in members]}
    return {**group, **parts}
