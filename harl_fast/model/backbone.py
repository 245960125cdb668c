"""What every backbone is: a network that returns its last feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harl_fast.errors import ConfigError
from harl_fast.model.norm import share_statistics
from harl_fast.options import check_whole

LAST_LEVEL = 4
"""Level of a network's last map."""


class Backbone(nn.Module):
    """Interface of the entries of `model.backbones.BACKBONES`: images to maps of (B, C, h, h).

    A subclass sets ``out_channels`` and defines ``forward``; the rest follows. One that takes
    images of ``model.in_channels`` other than 3 sets ``in_channels``, too. One that gives out maps
    of earlier levels overrides ``channels``, and its ``forward`` takes ``level`` as `ResNet`'s.
    """

    in_channels: int = 3
    """Channels of the images."""
    out_channels: int
    """Channels C of the returned map."""

    def channels(self, level: int) -> int:
        """Return the channels of a level's map. Raises ConfigError if it is not given out."""
        if level != LAST_LEVEL:
            raise ConfigError(
                f"loss.level {level} is a stage of the ResNets; of other networks regions are "
                f"pooled from the last map: use {LAST_LEVEL}"
            )
        return self.out_channels

    def feature_size(self, size_px: int, *, level: int = LAST_LEVEL) -> int:
        """Return the side h of a level's map of size_px images, by a pass of shapes alone.

        Raises ConfigError as `channels`.
        """
        check_whole(1, size_px=size_px)
        self.channels(level)
        return shapes_of_map(self, size_px, level=level)[-1]

    @property
    def native(self) -> nn.Module:
        """The module whose state dict has the names of the library that the network is from."""
        return self

    def sync_bn(self) -> None:
        """Make all BatchNorm layers share statistics over ranks, in place. Raises ConfigError."""
        share_statistics(self)


def shapes_of_map(network: Backbone, size_px: int, *, level: int = LAST_LEVEL) -> torch.Size:
    """Return the shape of the map that a network makes of two images of size_px at a level.

    Nothing is computed and no state moves: weights and images are replaced by shapes.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    # Two images: in training mode BatchNorm refuses a single value per channel.
    images = torch.empty(2, network.in_channels, size_px, size_px, device="meta")
    with torch.no_grad():
        if level == LAST_LEVEL:
            last: Tensor = functional_call(network, shapes, (images,))
            return last.shape
        earlier: Tensor = functional_call(network, shapes, (images,), {"level": level})[0]
        return earlier.shape
