from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from harl_fast.config import ModelConfig
from harl_fast.errors import ConfigError
from harl_fast.model.backbones import build_backbone, feature_size
from harl_fast.model.harl import HARL
from harl_fast.model.norm import RankBatchNorm2d
from harl_fast.optim.groups import param_groups

TIMM = ["timm:resnet50d", "timm:skresnet18", "timm:convnext_tiny", "timm:regnety_016"]


def section(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate(values)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_move_to_torchvision_and_give_the_same_map(arch: str) -> None:
    torch.manual_seed(0)
    ours = build_backbone(section(arch=arch))
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
    model = section(arch=arch, stem=stem, width=0.125, last_stride=last_stride)
    backbone = build_backbone(model).eval()
    for size_px in (8, 31, 32, 33, 64, 65, 97):
        out = backbone(torch.zeros(1, 3, size_px, size_px))
        side = feature_size(model, size_px=size_px)
        assert out.shape == (1, backbone.out_channels, side, side)


NARROW = """
import torch
from harl_fast.config import ModelConfig
from harl_fast.model.backbones import build_backbone
torch.manual_seed(0)
net = build_backbone(ModelConfig(arch="resnet18", width=0.125))
net.to(memory_format=torch.channels_last)
last = torch.channels_last
for _ in range(3):
    net(torch.randn(16, 3, 224, 224).to(memory_format=last)).square().mean().backward()
narrow = net.layer2[0].downsample[0]
x = torch.randn(16, 8, 65, 64).to(memory_format=last).requires_grad_()
narrow.zero_grad()
narrow(x).square().mean().backward()
exact, weight = (t.detach().double().requires_grad_() for t in (x, narrow.weight))
torch.nn.functional.conv2d(exact, weight, stride=2).square().mean().backward()
for ours, theirs in ((x.grad, exact.grad), (narrow.weight.grad, weight.grad)):
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
"""


def test_narrow_networks_do_not_meet_a_fault_of_torchs_library() -> None:
    """In a process of its own: as plain convolutions their projections end it, or corrupt it."""
    subprocess.run([sys.executable, "-c", NARROW], check=True, timeout=120)


def test_asking_for_the_size_of_the_map_touches_nothing() -> None:
    backbone = build_backbone(section(arch="resnet18", width=0.125))
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    assert backbone.training and backbone.feature_size(64) == 2 and backbone.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.device.type == "cpu", name


def test_the_paper_maps_are_7_and_14_cells_wide() -> None:
    sides = [feature_size(section(last_stride=stride), size_px=224) for stride in (2, 1)]
    assert sides == [7, 14]


def test_width_scales_every_channel_count() -> None:
    wide = dict(build_backbone(section(width=2.0)).named_parameters())
    for name, parameter in build_backbone(section()).named_parameters():
        outputs, inputs = parameter.shape[0], parameter.shape[1:2]
        doubled = [2 * outputs, *(size if size == 3 else 2 * size for size in inputs)]
        assert list(wide[name].shape[:2]) == doubled, name


def test_zero_init_makes_residual_branches_start_at_zero() -> None:
    named = dict(build_backbone(section(zero_init_residual=True)).named_parameters())
    for name, parameter in named.items():
        if name.endswith("bn3.weight"):
            assert not parameter.any()
        elif name.endswith("bn2.weight"):
            assert parameter.all()


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'resnet5' is none of .*timm:NAME.*did you mean"):
        build_backbone(section(arch="resnet5"))


@pytest.fixture
def timm() -> Any:
    """Return the optional package, or skip with its name."""
    return pytest.importorskip("timm", reason="the extra timm is not installed")


@pytest.mark.parametrize("arch", TIMM)
def test_a_network_of_timm_is_trained_whole(timm: Any, arch: str) -> None:
    torch.manual_seed(0)
    model = section(arch=arch, projector_hidden=8, projector_out=4, predictor_hidden=8)
    harl = HARL(model)
    harl.to(memory_format=torch.channels_last)
    side = feature_size(model, size_px=64)
    assert side == 2 and harl.backbone.feature_size(96) == 3
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    cells = [torch.rand(4, side, side) for _ in range(2)]
    loss, _ = harl(views, cells, alpha=1.0, beta=0.5)
    loss.backward()
    for name, parameter in harl.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    adapt, plain = param_groups(harl, weight_decay=1e-6)
    assert all(p.ndim > 1 for p in adapt["params"])
    kinds = {id(layer.weight): layer for layer in harl.modules() if hasattr(layer, "weight")}
    for parameter in plain["params"]:  # norm layers, biases, scales of layers
        assert not isinstance(kinds.get(id(parameter)), nn.Conv2d | nn.Linear)


@pytest.mark.parametrize("arch", TIMM)
def test_weights_of_timm_go_back_to_timm(timm: Any, arch: str) -> None:
    torch.manual_seed(0)
    ours = build_backbone(section(arch=arch)).eval()
    theirs = timm.create_model(arch.removeprefix("timm:"), pretrained=False).eval()
    result = theirs.load_state_dict(ours.native.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(name.startswith(("fc.", "head.")) for name in result.missing_keys)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs.forward_features(images))
        assert ours(images).shape[1] == ours.out_channels


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"arch": "timm:resnet5d"}, "did you mean"),
        ({"arch": "timm:vit_tiny_patch16_224"}, "convolutional"),
        ({"arch": "timm:swin_tiny_patch4_window7_224"}, "convolutional"),
        ({"arch": "timm:resnet50d", "width": 0.5}, r"model\.width 0\.5 does not apply"),
        ({"arch": "timm:resnet50d", "last_stride": 1}, r"model\.last_stride 1 does not apply"),
    ],
)
def test_what_timm_cannot_give_is_refused(timm: Any, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_backbone(section(**values))


def test_shared_statistics_keep_the_activations_of_timm(timm: Any) -> None:
    backbone = build_backbone(section(arch="timm:regnety_016"))
    before = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    names, images = [*backbone.state_dict()], torch.randn(2, 3, 64, 64)
    expected = backbone.eval()(images)
    backbone.sync_bn()
    after = [m for m in backbone.modules() if isinstance(m, RankBatchNorm2d)]
    assert len(after) == len(before) > 0
    assert [type(m.act) for m in after] == [type(m.act) for m in before]
    assert [*backbone.state_dict()] == names
    assert torch.equal(backbone(images), expected)


def test_a_missing_timm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs the package timm .*pip install"):
        build_backbone(section(arch="timm:resnet50d"))
