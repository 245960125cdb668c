"""What every backbone is: a network that returns its last feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harl_fast.model.norm import share_statistics


class Backbone(nn.Module):
    """Interface of the entries of `model.backbones.BACKBONES`: images to maps of (B, C, h, h).

    A subclass sets ``out_channels`` and defines ``forward``; the rest follows. One that takes
    images of ``model.in_channels`` other than 3 sets ``in_channels``, too.
    """

    in_channels: int = 3
    """Channels of the images."""
    out_channels: int
    """Channels C of the returned map."""

    def feature_size(self, size_px: int) -> int:
        """Return the side h of the map of size_px images, by a forward pass of shapes alone."""
        return shapes_of_map(self, size_px)[-1]

    @property
    def native(self) -> nn.Module:
        """The module whose state dict has the names of the library that the network is from."""
        return self

    def sync_bn(self) -> None:
        """Make all BatchNorm layers share statistics over ranks, in place. Raises ConfigError."""
        share_statistics(self)


def shapes_of_map(network: Backbone, size_px: int) -> torch.Size:
    """Return the shape of what a network makes of two images of size_px.

    Nothing is computed and no state moves: weights and images are replaced by shapes.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    # Two images: in training mode BatchNorm refuses a single value per channel.
    images = torch.empty(2, network.in_channels, size_px, size_px, device="meta")
    with torch.no_grad():
        output: Tensor = functional_call(network, shapes, (images,))
    return output.shape
