"""Convolutional networks of timm, which the optional extra ``timm`` installs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harl_fast.config import ModelConfig
from harl_fast.errors import ConfigError, nearest
from harl_fast.model.backbone import Backbone, shapes_of_map
from harl_fast.model.norm import share_statistics

PREFIX = "timm:"


class TimmNetwork(Backbone):
    """The network that ``timm:NAME`` means, without weights of others and without its classifier.

    Any network of timm serves whose `forward_features` gives a (B, C, h, h) map. It is initialised
    as timm does it. Raises ConfigError for others, or where timm is not installed.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        _refuse_keys_of_resnets(model)
        timm, name = _timm(), model.arch.removeprefix(PREFIX)
        if not timm.is_model(name):
            raise ConfigError(
                f"model.arch {model.arch!r}: timm {timm.__version__} has no network of that name"
                f"{nearest(name, timm.list_models())}"
            )
        self.in_channels = model.in_channels
        self.network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, in_chans=model.in_channels
        )
        shape = self._without_unused_children()
        if len(shape) != 4 or shape[1] != self.network.num_features or shape[2] != shape[3]:
            raise ConfigError(
                f"model.arch {model.arch!r} turns images of (2, {self.in_channels}, 224, 224) into "
                f"{tuple(shape)}, which is no map of (2, {self.network.num_features}, h, h) that "
                f"masks could weight. Choose a convolutional network, such as {PREFIX}convnext_tiny"
            )
        self.out_channels = shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, C, h, h) map of (B, in_channels, S, S) images."""
        features: Tensor = self.network.forward_features(x)  # type: ignore[operator]
        return features

    @property
    def native(self) -> nn.Module:
        """timm's own module."""
        return self.network

    def sync_bn(self) -> None:
        """Make all BatchNorm layers share statistics over ranks, in place. Raises ConfigError."""
        share_statistics(self, also=(_timm().layers.BatchNormAct2d,))

    def _without_unused_children(self) -> Any:
        """Drop what `forward_features` does not reach, whose weights would never get a gradient.

        Returns the shape of the map of two 224 px images.
        """
        reached: set[nn.Module] = set()
        hooks = [
            module.register_forward_hook(lambda module, *_: reached.add(module))
            for module in self.network.modules()
        ]
        shape = shapes_of_map(self, 224)
        for hook in hooks:
            hook.remove()
        for name, child in self.network.named_children():
            if reached.isdisjoint(child.modules()):
                setattr(self.network, name, nn.Identity())
        return shape


def _refuse_keys_of_resnets(model: ModelConfig) -> None:
    for key in ("width", "stem", "last_stride", "zero_init_residual"):
        value, default = getattr(model, key), ModelConfig.model_fields[key].default
        if value != default:
            raise ConfigError(
                f"model.{key} {value} does not apply to {model.arch}, only to the ResNets without "
                f"{PREFIX}; set it to {default}"
            )


def _timm() -> Any:  # it may be missing
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"model.arch {PREFIX}NAME needs the package timm ({error}); install it with "
            f"`.venv/bin/python -m pip install -e '.[timm]'`"
        ) from error
    return timm
