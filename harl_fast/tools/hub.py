"""What torch.hub gives: a pretrained encoder with named end points."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from harl_fast.engine.networks import Pretrained, load_pretrained
from harl_fast.errors import CheckpointError
from harl_fast.model.classifier import end_points


class HubEncoder(nn.Module):
    """An encoder as `torch.hub.load` returns it."""

    def __init__(self, pretrained: Pretrained, *, endpoints: bool) -> None:
        super().__init__()
        self.backbone, self.projector = pretrained.backbone, pretrained.projector
        self.heads = pretrained.head
        self.endpoints = endpoints
        self.mean, self.std = pretrained.mean, pretrained.std
        """By which images in [0, 1] must be normalised."""
        self.size_px, self.classes = pretrained.size_px, pretrained.classes
        self.out_channels = self.backbone.out_channels
        """D: length of the pooled features."""

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Return (B, D) pooled features of normalised (B, C, S, S) images.

        With ``endpoints`` the dictionary of `model.classifier.end_points` instead.
        """
        found = end_points(self.backbone, images, projector=self.projector, heads=self.heads)
        return found if self.endpoints else found["default"]


def load(weights: Path | str, *, arch: str | None = None, endpoints: bool = False) -> HubEncoder:
    """Return an encoder in eval mode; its parameters can be trained.

    weights: as for `load_pretrained`. arch: CheckpointError for another one.
    """
    pretrained = load_pretrained(weights)
    if arch not in (None, pretrained.model.arch):
        raise CheckpointError(
            f"{weights} holds {pretrained.model.arch}, not {arch}: load it by harl_encoder, or by "
            f"the entry point of its network"
        )
    return HubEncoder(pretrained, endpoints=endpoints).eval()
