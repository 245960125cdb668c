"""Regions that are pooled from the map of an earlier stage, by heads of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from harl_fast.config import LossConfig, ModelConfig, OptimConfig
from harl_fast.errors import ConfigError
from harl_fast.model.backbones import build_backbone, feature_size
from harl_fast.model.ema import ema_pairs
from harl_fast.model.harl import HARL
from harl_fast.optim.build import build_optimizer
from tests.model.support import ALPHA, BETA, CELLS, SIDE, batch, build, composed
from tests.model.test_multicrop import MULTICROP, crops
from tests.oracles import losses as oracle

BOTH = ("byol+f_loss", "byol+f_loss+b_loss")


def cells_at(model: HARL) -> torch.Tensor:
    """Return the batch's cells at the side of the map that regions are pooled from."""
    _, cells = batch()
    side = model.feature_size(SIDE)
    return functional.interpolate(cells, scale_factor=side // CELLS, mode="nearest")


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("loss_type", BOTH)
def test_regions_are_those_of_the_earlier_map(loss_type: str, level: int) -> None:
    model = build(loss_type, level=level, spread=0.5)
    assert model.feature_size(SIDE) == {1: 16, 2: 8, 3: 4}[level]
    (views, _), cells = batch(), cells_at(model)
    terms = composed(copy.deepcopy(model), views, cells.unbind(1))
    loss, logs = model(views, cells.unbind(1), alpha=ALPHA, beta=BETA)
    for name, value in terms.items():
        assert logs[f"loss/{name}"].item() == pytest.approx(value, rel=1e-10)
    expected = oracle.total(loss_type, terms, alpha=ALPHA, beta=BETA)
    spread = 0.5 * logs["loss/spread"].item()
    assert loss.item() == pytest.approx(expected + spread, rel=1e-10)
    # The last map's regions are others.
    last = build(loss_type)
    _, other = last(views, batch()[1].unbind(1), alpha=ALPHA, beta=BETA)
    assert other["loss/fg"].item() != pytest.approx(logs["loss/fg"].item(), rel=1e-3)


def test_small_views_have_them_too() -> None:
    model = build("byol+f_loss", level=3, roles=MULTICROP, predictor_per="role")
    views, cells = crops()  # of 4 and 2 cells a side, as the third stage's maps are
    terms = composed(copy.deepcopy(model), views, cells)
    _, logs = model(views, cells, alpha=ALPHA, beta=BETA)
    for name, value in terms.items():
        assert logs[f"loss/{name}"].item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize(
    ("beta", "without"), [(0.0, ("layer4", "projector", "predictor")), (1.0, ("region_",))]
)
def test_a_term_moves_what_it_is_computed_from_alone(beta: float, without: tuple[str, ...]) -> None:
    model = build("byol+f_loss", level=3)
    (views, _), cells = batch(), cells_at(model)
    model(views, cells.unbind(1), alpha=1.0, beta=beta)[0].backward()
    for name, parameter in model.named_parameters():
        reached = not name.removeprefix("backbone.").startswith(without)
        assert (parameter.grad is not None) == reached, name


def test_the_target_follows_in_its_heads_and_the_predictors_rate_is_theirs() -> None:
    model = build("byol+f_loss", level=3)
    followers, leaders = ema_pairs(model.target, model)
    assert model.region_projector is not None
    followed = {id(parameter) for parameter in leaders}
    assert all(id(parameter) in followed for parameter in model.region_projector.parameters())
    assert len(followers) == len(list(model.target.parameters()))
    optimizer = build_optimizer(OptimConfig(name="sgd", predictor_lr_scale=7.0), model)
    assert model.region_predictor is not None
    (scale,) = {
        group.get("lr_mult", 1.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if any(parameter is own for own in model.region_predictor.parameters())
    }
    assert scale == 7.0


def test_a_level_of_the_last_map_leaves_everything_as_it_was() -> None:
    names = build("byol+f_loss").state_dict().keys()
    assert not any(name.startswith("region_") for name in names)


def test_the_side_is_the_levels() -> None:
    section = ModelConfig(arch="resnet50")
    sides = [feature_size(section, size_px=224, level=level) for level in (1, 2, 3, 4)]
    assert sides == [56, 28, 14, 7]
    network = build_backbone(section)
    assert [network.channels(level) for level in (1, 2, 3, 4)] == [256, 512, 1024, 2048]


@pytest.mark.parametrize("loss_type", ["byol", "f_loss", "f_loss+b_loss"])
def test_a_level_without_whole_image_and_regions_is_refused(loss_type: str) -> None:
    with pytest.raises(ValueError, match="level 3 is for regions beside the whole image"):
        LossConfig.model_validate({"type": loss_type, "level": 3})


def test_networks_without_stages_are_refused() -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    section = ModelConfig(arch="timm:resnet18")
    for refused in (
        lambda: feature_size(section, size_px=64, level=3),
        lambda: HARL(section, LossConfig(level=3)),
    ):
        with pytest.raises(ConfigError, match=r"loss\.level 3 is a stage of the ResNets"):
            refused()
