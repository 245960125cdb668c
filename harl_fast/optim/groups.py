"""Which parameters decay and adapt."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

ParamGroup = dict[str, Any]  # torch's own type: tensors, numbers, names


def param_groups(module: nn.Module, *, weight_decay: float) -> list[ParamGroup]:
    """Return the trainable parameters of ``module`` as the groups "adapt" and "plain".

    adapt: weights of linear and convolution layers, which LARS adapts (``lars`` True) and which
    decay. plain: everything else, that is biases and the affine parts of norm layers (BYOL,
    section 3.3). ``names`` holds each group's parameter names in order. A group without
    parameters is left out.
    """
    adapt: ParamGroup = {"name": "adapt", "lars": True, "weight_decay": weight_decay}
    plain: ParamGroup = {"name": "plain", "lars": False, "weight_decay": 0.0}
    weights = {
        id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | _ConvNd)
    }
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for group, chosen in ((adapt, True), (plain, False)):
        members = [(name, p) for name, p in named if (id(p) in weights) is chosen]
        group["params"] = [p for _, p in members]
        group["names"] = [name for name, _ in members]
    return [group for group in (adapt, plain) if group["params"]]
