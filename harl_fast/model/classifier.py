"""A backbone, layers of its projector and linear heads: fine-tuning and linear evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.errors import ConfigError
from harl_fast.model.backbone import Backbone
from harl_fast.model.heads import LinearHeads, MLPHead, first_layers
from harl_fast.model.norm import share_statistics
from harl_fast.model.pooling import global_mean
from harl_fast.model.precision import without_autocast
from harl_fast.model.resnet import ResNet

ALL, LINEAR = -1, 4
"""Boundaries that every backbone has: train all of it, or none."""
Part = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """Images to the logits of G linear heads, trained from a boundary on.

    boundary: SimCLR's ``fine_tune_after_block``. -1 trains all; 0 freezes the stem, 1 to 3 up to
    that stage of a ResNet, 4 all but the heads. What is frozen gets no gradient, and its BatchNorm
    stays in eval mode, so that neither weights nor buffers move. selector: see `first_layers`; 0
    drops the projector. Layers of it are trained unless the boundary is 4. Raises ConfigError.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        classes: int,
        projector: MLPHead | None = None,
        selector: int = 0,
        boundary: int = ALL,
        heads: int = 1,
        zero: bool = True,
    ) -> None:
        """backbone: taken as it is. projector: of which `first_layers` takes a copy.

        heads, zero: as in `LinearHeads`.
        """
        super().__init__()
        _check_boundary(backbone, boundary)
        if selector and projector is None:
            raise ConfigError(
                f"ft_proj_selector {selector} needs the projector, which the checkpoint's file "
                f"lacks: set it to 0 (--ft-proj-selector 0)"
            )
        self.backbone, self.boundary = backbone, boundary
        self.projection: MLPHead | None = None
        dim = backbone.out_channels
        if selector and projector is not None:
            self.projection = first_layers(projector, selector)
            dim = _out_dim(self.projection)
        self.heads = LinearHeads(dim, classes, count=heads, zero=zero)
        self.watched = True
        """Whether `forward` counts right answers; an engine asks for it at the steps it logs."""
        for module in self.frozen():
            module.requires_grad_(False)
        self.train()

    def frozen(self) -> list[nn.Module]:
        """Return the modules below the boundary."""
        found: list[nn.Module] = []
        if self.boundary == LINEAR:
            found = [self.backbone, *([] if self.projection is None else [self.projection])]
        elif self.boundary >= 0:
            names = ["conv1", "bn1", *(f"layer{n}" for n in range(1, self.boundary + 1))]
            found = [self.backbone.get_submodule(name) for name in names]
        return found

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of what is trained; what is frozen stays in eval mode."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self

    def share_statistics(self) -> None:
        """Make the trained BatchNorm layers take their statistics over all ranks, in place."""
        if self.boundary == LINEAR:
            return
        for norm in () if self.projection is None else self.projection.norms:
            norm.synced = True  # type: ignore[assignment]
        if self.boundary == ALL:
            self.backbone.sync_bn()
            return
        frozen = self.frozen()
        for part in self.backbone.children():
            if part not in frozen:
                share_statistics(part)

    def features(self, images: Tensor) -> Tensor:
        """Return the (B, D) float32 rows that the heads see, of (B, C, S, S) images."""
        frozen, trained = self._parts()
        with torch.no_grad():
            for part in frozen:
                images = part(images)
        for part in trained:
            images = part(images)
        # Only a boundary of 4 leaves nothing to differentiate here.
        with torch.no_grad() if self.boundary == LINEAR else contextlib.nullcontext():
            rows = global_mean(images)
            return rows if self.projection is None else self.projection(rows)

    def _parts(self) -> tuple[Sequence[Part], Sequence[Part]]:
        """Return the frozen and the trained parts of the backbone, in order."""
        if self.boundary == ALL:
            return (), (self.backbone,)
        if self.boundary == LINEAR:
            return (self.backbone,), ()
        assert isinstance(self.backbone, ResNet)
        stages = self.backbone.stages()
        return stages[: self.boundary + 1], stages[self.boundary + 1 :]

    def logits(self, images: Tensor) -> Tensor:
        """Return (B, G, K) float32 logits."""
        logits: Tensor = self.heads(self.features(images))
        return logits

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the figures to log, of (B, C, S, S) images and (B,) int64 labels.

        The loss is the sum over the heads of the mean cross-entropy, so that each head's gradient
        is what it would be alone. Figures: "loss", its mean over the heads; with several of them
        each one's, "loss/head0" and so on; if ``watched``, "top1", the share of right answers, the
        best head's if there are several.
        """
        logits = self.logits(images)
        with without_autocast(logits):
            heads = logits.shape[1]
            each = functional.cross_entropy(
                logits.flatten(0, 1), labels.repeat_interleave(heads), reduction="none"
            )
            losses = each.view(-1, heads).mean(0)
        figures = {"loss": losses.detach().mean()}
        if heads > 1:
            figures |= {f"loss/head{g}": loss for g, loss in enumerate(losses.detach().unbind())}
        if self.watched:
            right = logits.detach().argmax(2) == labels[:, None]
            figures["top1"] = right.float().mean(0).max()
        return losses.sum(), figures


def _check_boundary(backbone: Backbone, boundary: int) -> None:
    if boundary not in range(ALL, LINEAR + 1):
        raise ConfigError(
            f"fine_tune_after_block {boundary} is none of -1 (train all), 0 to 3 (freeze the stem, "
            f"and up to that stage), 4 (train the heads alone)"
        )
    if boundary not in (ALL, LINEAR) and not isinstance(backbone, ResNet):
        raise ConfigError(
            f"fine_tune_after_block {boundary} is a stage of the ResNets; of other networks use -1 "
            f"(train all) or 4 (train the heads alone)"
        )


def _out_dim(head: MLPHead) -> int:
    out = head.out
    dim: int = out.out_features if isinstance(out, nn.Linear) else head.linears[-1].out_features
    return dim


def end_points(
    backbone: Backbone,
    images: Tensor,
    *,
    projector: MLPHead | None = None,
    heads: LinearHeads | None = None,
) -> dict[str, Tensor]:
    """Return what a network makes of (B, C, S, S) images, by SimCLR's names of its hub modules.

    Of a ResNet "initial_conv" (before its BatchNorm), "initial_max_pool" and "block_group1" to
    "block_group4", (B, D, h, w) maps; of every network "final_avg_pool", also as "default" and
    "proj_head_input", (B, D) float32. projector: adds "proj_head_output". heads: of the pooled
    features; adds the first head's "logits_sup" (B, K).
    """
    found: dict[str, Tensor] = {}
    x = images
    if isinstance(backbone, ResNet):
        stem, *groups = backbone.stages()
        found["initial_conv"] = backbone.conv1(images)
        found["initial_max_pool"] = x = stem(images)
        for number, group in enumerate(groups, start=1):
            found[f"block_group{number}"] = x = group(x)
    else:
        x = backbone(images)
    pooled = global_mean(x)
    found |= dict.fromkeys(("final_avg_pool", "default", "proj_head_input"), pooled)
    if projector is not None:
        found["proj_head_output"] = projector(pooled)
    if heads is not None:
        found["logits_sup"] = heads(pooled)[:, 0]
    return found
