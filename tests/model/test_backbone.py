from __future__ import annotations

import pytest
import torch
import torchvision

from harl_fast.errors import ConfigError
from harl_fast.model.backbone import build_backbone, feature_size


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_move_to_torchvision_and_give_the_same_map(arch: str) -> None:
    torch.manual_seed(0)
    ours = build_backbone(arch)
    theirs = torchvision.models.get_model(arch, weights=None)
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    x = torch.randn(2, 3, 64, 64)
    trunk = torch.nn.Sequential(*list(theirs.children())[:-2])
    assert torch.equal(ours(x), trunk(x))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["imagenet", "small", "small-s2"])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_feature_size_and_channels_are_those_of_the_map(
    arch: str, stem: str, last_stride: int
) -> None:
    backbone = build_backbone(arch, stem=stem, width=0.125, last_stride=last_stride).eval()
    for size_px in (8, 31, 32, 33, 64, 65, 97):
        out = backbone(torch.zeros(1, 3, size_px, size_px))
        side = feature_size(arch, stem=stem, last_stride=last_stride, size_px=size_px)
        assert out.shape == (1, backbone.out_channels, side, side)


def test_the_paper_maps_are_7_and_14_cells_wide() -> None:
    sides = [
        feature_size("resnet50", stem="imagenet", last_stride=stride, size_px=224)
        for stride in (2, 1)
    ]
    assert sides == [7, 14]


def test_width_scales_every_channel_count() -> None:
    wide = dict(build_backbone("resnet50", width=2.0).named_parameters())
    for name, parameter in build_backbone("resnet50").named_parameters():
        outputs, inputs = parameter.shape[0], parameter.shape[1:2]
        doubled = [2 * outputs, *(size if size == 3 else 2 * size for size in inputs)]
        assert list(wide[name].shape[:2]) == doubled, name


def test_zero_init_makes_residual_branches_start_at_zero() -> None:
    named = dict(build_backbone("resnet50", zero_init_residual=True).named_parameters())
    for name, parameter in named.items():
        if name.endswith("bn3.weight"):
            assert not parameter.any()
        elif name.endswith("bn2.weight"):
            assert parameter.all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arch": "resnet5"}, "resnet50"),
        ({"stem": "smal"}, "small"),
        ({"last_stride": 3}, "last_stride 3"),
        ({"width": 0.001}, "width 0.001"),
    ],
)
def test_a_wrong_choice_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_backbone(**{"arch": "resnet18", **change})  # type: ignore[arg-type]
