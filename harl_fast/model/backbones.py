"""The backbones by the names that ``model.arch`` takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from harl_fast.config import ModelConfig
from harl_fast.errors import ConfigError, nearest
from harl_fast.model.backbone import LAST_LEVEL, Backbone
from harl_fast.model.resnet import ARCHS, ResNet
from harl_fast.model.timm_network import PREFIX, TimmNetwork

BACKBONES: dict[str, Callable[[ModelConfig], Backbone]] = dict.fromkeys(ARCHS, ResNet)
"""What builds the backbone of each name from section ``model``, freshly initialised."""


def build_backbone(model: ModelConfig) -> Backbone:
    """Return the freshly initialised backbone that a section describes. Raises ConfigError."""
    if model.arch.startswith(PREFIX):
        return TimmNetwork(model)
    if model.arch not in BACKBONES:
        names = [*BACKBONES, f"{PREFIX}NAME"]
        raise ConfigError(
            f"model.arch {model.arch!r} is none of {', '.join(names)}{nearest(model.arch, names)}"
        )
    backbone = BACKBONES[model.arch](model)
    if backbone.in_channels != model.in_channels:
        raise ConfigError(
            f"model.in_channels {model.in_channels}: {model.arch} takes images of "
            f"{backbone.in_channels} channels (its `in_channels`); set model.in_channels to that"
        )
    return backbone


@cache
def feature_size(model: ModelConfig, *, size_px: int, level: int = LAST_LEVEL) -> int:
    """Return the side h of a level's map that `build_backbone`'s network makes of size_px images.

    Raises ConfigError.
    """
    with torch.device("meta"):
        return build_backbone(model).feature_size(size_px, level=level)
