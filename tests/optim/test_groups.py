from __future__ import annotations

from torch import nn

from harl_fast.config import ModelConfig
from harl_fast.model.backbones import build_backbone
from harl_fast.model.heads import MLPHead
from harl_fast.optim.groups import param_groups


def test_weights_adapt_and_decay_and_nothing_else_does() -> None:
    module = nn.ModuleDict(
        {"net": build_backbone(ModelConfig(arch="resnet18")), "head": MLPHead(512, 8, 4)}
    )
    adapt, plain = param_groups(module, weight_decay=1e-6)
    assert (adapt["name"], adapt["lars"], adapt["weight_decay"]) == ("adapt", True, 1e-6)
    assert (plain["name"], plain["lars"], plain["weight_decay"]) == ("plain", False, 0.0)
    # 20 convolutions and 2 linear layers; 21 norm layers of two tensors and 1 bias.
    assert (len(adapt["names"]), len(plain["names"])) == (22, 43)
    named = dict(module.named_parameters())
    for group in (adapt, plain):
        assert [id(named[name]) for name in group["names"]] == [id(p) for p in group["params"]]
    assert all(named[name].ndim > 1 for name in adapt["names"])
    assert all(
        "bn" in n or "norms" in n or "bias" in n or "downsample.1" in n for n in plain["names"]
    )


def test_membership_follows_the_layer_type_not_the_shape() -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(nn.init.ones_(nn.Linear(3, 2).weight))

    module = nn.ModuleList([nn.Linear(3, 2), Shaped()])
    adapt, plain = param_groups(module, weight_decay=0.1)
    assert adapt["names"] == ["0.weight"]
    assert plain["names"] == ["0.bias", "1.table"]


def test_frozen_shared_and_absent_parameters() -> None:
    module = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    module[1].weight = module[0].weight
    (adapt,) = param_groups(module, weight_decay=0.1)
    assert adapt["names"] == ["0.weight"]
    module.requires_grad_(False)
    assert param_groups(module, weight_decay=0.1) == []


def test_parts_with_a_factor_are_groups_of_their_own_that_lars_adapts() -> None:
    module = nn.ModuleDict({"body": nn.Linear(4, 3), "predictor": MLPHead(3, 4, 2)})
    groups = param_groups(module, weight_decay=0.1, scaled={"predictor": 10.0, "absent": 3.0})
    found = {group["name"]: group for group in groups}
    assert list(found) == ["adapt", "plain", "predictor adapt", "predictor plain"]
    assert found["predictor adapt"]["names"] == [
        "predictor.linears.0.weight",
        "predictor.out.weight",
    ]
    assert [group["lars"] for group in groups] == [True, False] * 2
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0] * 2
    assert [group.get("lr_mult", 1.0) for group in groups] == [1.0, 1.0, 10.0, 10.0]


def test_heads_are_groups_of_their_own_that_lars_leaves_alone() -> None:
    heads = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    module = nn.ModuleDict({"body": nn.Linear(4, 3), "heads": heads})
    groups = param_groups(module, weight_decay=0.1, heads={"heads.0": 1.0, "heads.1": 10.0})
    found = {group["name"]: group for group in groups}
    names = [
        f"{head}{kind}" for head in ("", "heads.0 ", "heads.1 ") for kind in ("adapt", "plain")
    ]
    assert list(found) == names
    assert found["heads.1 adapt"]["names"] == ["heads.1.weight"]
    assert found["heads.1 plain"]["names"] == ["heads.1.bias"]
    assert [group["lars"] for group in groups] == [True, *[False] * 5]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0] * 3
    assert [group.get("lr_mult", 1.0) for group in groups] == [1.0, 1.0, 1.0, 1.0, 10.0, 10.0]
