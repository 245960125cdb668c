"""lightly's BYOL as its ImageNet benchmark trains it, without Lightning around it.

Its own heads, loss, moving average, optimizer and parameter groups, over torchvision's ResNet-18.
Its documentation and package know no channels-last, so the bar's contender is contiguous; one in
channels-last runs beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import get_weight_decay_parameters, update_momentum
from lightly.utils.lars import LARS
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks import step_setup as setup


class BYOL(nn.Module):
    """Online and target network with lightly's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.backbone.fc = nn.Identity()
        self.projection_head = BYOLProjectionHead(512, setup.HIDDEN, setup.OUT)
        self.prediction_head = BYOLPredictionHead(setup.OUT, setup.HIDDEN, setup.OUT)
        self.teacher_backbone = copy.deepcopy(self.backbone)
        self.teacher_projection_head = copy.deepcopy(self.projection_head)

    def student(self, x: Tensor) -> Tensor:
        """Return the predictions of a view."""
        features = self.backbone(x).flatten(start_dim=1)
        predictions: Tensor = self.prediction_head(self.projection_head(features))
        return predictions

    @torch.no_grad()
    def teacher(self, x: Tensor) -> Tensor:
        """Return the target's projections of a view."""
        features = self.teacher_backbone(x).flatten(start_dim=1)
        projections: Tensor = self.teacher_projection_head(features)
        return projections


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, figures) per step for ever; see `step_ours.batches`."""
    setup.quiet_threads(settings)
    torch.manual_seed(0)
    model = BYOL()
    if settings["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    decayed, plain = get_weight_decay_parameters(
        [model.backbone, model.projection_head, model.prediction_head]
    )
    optimizer = LARS(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=setup.LR,
        momentum=0.9,
        weight_decay=setup.DECAY,
    )
    criterion = NegativeCosineSimilarity()
    size = settings["batch"]
    batch = setup.fixed_batch(batch=size, channels_last=settings["channels_last"])
    first, second = batch.views
    half = settings["precision"] == "bf16"
    while True:
        update_momentum(model.backbone, model.teacher_backbone, m=setup.TAU)
        update_momentum(model.projection_head, model.teacher_projection_head, m=setup.TAU)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            z0, z1 = model.teacher(first), model.teacher(second)
            p0, p1 = model.student(first), model.student(second)
            # Twice each, for |x - y|^2 = 2 - 2 cos; the sum of both directions, as the reference.
            loss = 2 * criterion(z0, p1) + 2 * criterion(z1, p0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield size, {"loss": float(loss) + 4.0} if settings.get("watched") else {}
