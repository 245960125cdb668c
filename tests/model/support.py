"""A tiny method in float64, batches for it, and its terms composed from the oracles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harl_fast.config import LossConfig, ModelConfig
from harl_fast.model.backbone import Backbone
from harl_fast.model.harl import HARL
from harl_fast.model.heads import MLPHead
from tests.oracles import losses as oracle

BATCH, SIDE, CELLS = 6, 16, 4
ALPHA, BETA = 0.6, 0.3
REGIONS = {
    "byol": ["whole"],
    "f_loss": ["fg"],
    "f_loss+b_loss": ["fg", "bg"],
    "byol+f_loss": ["whole", "fg"],
    "byol+f_loss+b_loss": ["whole", "fg", "bg"],
}


def build(
    loss_type: str,
    *,
    mask_mode: str = "soft",
    min_area: float = 1e-3,
    roles: Sequence[str] = (),
    predictor_per: Literal["network", "role"] = "network",
    **others: float,
) -> HARL:
    torch.manual_seed(0)
    section = ModelConfig(
        arch="resnet18",
        stem="small",
        width=0.125,
        last_stride=1,
        projector_hidden=16,
        projector_out=8,
        predictor_hidden=16,
        predictor_per=predictor_per,
    )
    loss = {"type": loss_type, "mask": mask_mode, "min_area": min_area, **others}
    model = HARL(section, LossConfig.model_validate(loss), roles=roles).double()
    # A target unlike the online network, as after some steps.
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.mul_(1.0 + 0.1 * torch.randn_like(parameter))
    return model


def batch(seed: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.randn(BATCH, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
        for _ in range(2)
    ]
    cells = torch.rand(BATCH, 2, CELLS, CELLS, dtype=torch.float64, generator=generator)
    cells[0] = 0.0  # no foreground
    cells[1, 1] = 0.0  # no foreground in the second view only
    cells[2] = 1.0  # no background
    return views, cells


def composed(
    model: HARL, views: Sequence[torch.Tensor], cells: Sequence[torch.Tensor], *, targets: int = 2
) -> dict[str, float]:
    """Return the terms by the oracles, one head call a view and region, plain BatchNorm."""
    found = {}
    for region in REGIONS[model.loss.type]:
        p, z, usable = regional(model, views, cells, region=region, targets=targets)
        pair = len(p) == len(z) == 2
        found[region] = (
            oracle.byol_sum(p, z, usable[0] & usable[1])
            if pair
            else oracle.mean_over_pairs(p, z, usable)
        )
    return found


def regional(
    model: HARL,
    views: Sequence[torch.Tensor],
    cells: Sequence[torch.Tensor],
    *,
    region: str,
    targets: int = 2,
) -> tuple[list[oracle.Array], list[oracle.Array], list[npt.NDArray[np.bool_]]]:
    """Return a region's predictions, projections by the target, and rows with area of each view."""
    level = 4 if region == "whole" else model.loss.level
    projector, predictor, target = model.projector, model.predictor, model.target.projector
    if level != 4:
        assert model.region_projector and model.region_predictor and model.target.region_projector
        projector, predictor = model.region_projector, model.region_predictor
        target = model.target.region_projector
    p, z, usable = [], [], []
    for number, (view, cell) in enumerate(zip(views, cells, strict=True)):
        grid = cell.numpy()
        maps = stage(model.backbone, view, level)
        whole = np.ones((len(maps), *maps.shape[2:]))
        mask = {"whole": whole, "fg": grid, "bg": 1 - grid}[region]
        mean, enough = oracle.masked_mean(maps, mask, min_area=1e-3)
        own = model.online_predictor if number >= targets and level == 4 else None
        rows = plain(own or predictor)(plain(projector)(torch.tensor(mean)))
        p.append(rows.detach().numpy())
        usable.append(enough)
        if number < targets:
            maps = stage(model.target.backbone, view, level)
            mean, _ = oracle.masked_mean(maps, mask, min_area=1e-3)
            z.append(plain(target)(torch.tensor(mean)).detach().numpy())
    return p, z, usable


def stage(backbone: Backbone, view: torch.Tensor, level: int) -> oracle.Array:
    """Return what a stage of a ResNet gives out in a pass of the whole network."""
    maps: list[torch.Tensor] = []
    module = backbone.get_submodule(f"layer{level}")
    with module.register_forward_hook(lambda module, images, output: maps.append(output)):
        backbone(view)
    return maps[0].detach().numpy()


def plain(head: MLPHead) -> nn.Sequential:
    """Return a head's layers with torch's own BatchNorm."""
    stack: list[nn.Module] = []
    for linear, norm in zip(head.linears, head.norms, strict=True):
        ordinary = nn.BatchNorm1d(head.out.in_features).double()
        ordinary.load_state_dict(norm.state_dict())
        stack += [linear, ordinary, nn.ReLU()]
    return nn.Sequential(*stack, head.out)
