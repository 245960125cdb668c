"""Which of a checkpoint's tensors a fine-tuning loads: SimCLR's ``variable_schema``."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from harl_fast.engine.networks import Pretrained, random_like
from harl_fast.errors import ConfigError, nearest, shown

GROUPS = ("backbone", "head_contrastive", "head_supervised")
"""What names begin with that ``variable_schema`` is matched with."""


@torch.no_grad()
def apply_schema(pretrained: Pretrained, schema: str, *, seed: int) -> tuple[Pretrained, str]:
    """Initialise anew what a ``variable_schema`` does not match, in place; say what was loaded.

    Raises ConfigError for a text that is no regular expression, or that matches nothing.
    """
    try:
        pattern = re.compile(schema)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"variable_schema {shown(schema)} is no regular expression ({error}); such as "
            f"(?!global_step|head) loads all but the heads"
        ) from error
    parts = {"backbone": pretrained.backbone.native}
    fresh = random_like(pretrained, seed=seed)
    new = {"backbone": fresh.backbone.native}
    if pretrained.projector is not None and fresh.projector is not None:
        parts["head_contrastive"], new["head_contrastive"] = (
            pretrained.projector,
            fresh.projector,
        )
    told, any_loaded = [], False
    for group, module in parts.items():
        other, loaded = new[group].state_dict(), 0
        for name, tensor in module.state_dict().items():
            if pattern.match(f"{group}.{name}"):
                loaded += 1
            else:
                tensor.copy_(other[name])
        any_loaded |= loaded > 0
        told.append(f"{group} {loaded} loaded, {len(other) - loaded} excluded")
    if not any_loaded:
        near = nearest(re.sub(r"[^a-z_]", "", schema), GROUPS)
        raise ConfigError(
            f"variable_schema {shown(schema)} matches no name: they begin with "
            f"{', '.join(f'{group}.' for group in GROUPS)}{near}"
        )
    if pretrained.head is not None:
        kept = pattern.match("head_supervised.weight") is not None
        told.append(f"head_supervised {'loaded' if kept else 'excluded'}")
        if not kept:
            pretrained = replace(pretrained, head=None, classes=())
    return pretrained, f"variable schema {shown(schema)}: {'; '.join(told)}"
