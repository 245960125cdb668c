"""Weights of other programs, recognised by names and shapes."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from harl_fast.config import ModelConfig
from harl_fast.engine.initial import open_initial
from harl_fast.engine.networks import Pretrained, load_pretrained, random_like
from harl_fast.errors import CheckpointError, ConfigError, HarlError
from harl_fast.model.backbones import build_backbone
from tests.engine.saved import checkpoint, stir

SMALL = {"arch": "resnet18", "width": 0.25}


def network(**model: Any) -> dict[str, Tensor]:
    """Return a random ResNet's tensors, which have torchvision's names."""
    tensors = build_backbone(ModelConfig.model_validate(SMALL | model)).state_dict()
    stir(tensors)
    return tensors


def below(prefix: str, tensors: dict[str, Tensor], *, shift: float = 0.0) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor + shift for name, tensor in tensors.items()}


def in_places(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of `nn.Sequential(*list(resnet.children())[:-1])`."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    split = {name: name.partition(".") for name in tensors}
    return {f"{places[first]}.{rest}": tensors[n] for n, (first, _, rest) in split.items()}


def saved(path: Path, content: Any) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def same(pretrained: Pretrained, tensors: dict[str, Tensor]) -> bool:
    found = pretrained.backbone.state_dict()
    return found.keys() == tensors.keys() and all(
        torch.equal(found[n], t) for n, t in tensors.items()
    )


LAYOUTS = {
    "plain.pth": lambda own, other: own,
    "plain.safetensors": lambda own, other: own | {"fc.weight": torch.zeros(10, 128)},
    "simclr.pth": lambda own, other: {"state_dict": own, "epoch": 1000},
    "ddp.pt": lambda own, other: {"model": below("module.", own)},
    "compiled.pt": lambda own, other: below("_orig_mod.backbone.", own),
    "both.pth": lambda own, other: {"state_dict": below("module._orig_mod.encoder.", own)},
    "byol.pth": lambda own, other: {
        "online_network": below("module.encoder.", own),
        "target_network": below("module.encoder.", other),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
    },
    "byol2.pth": lambda own, other: {
        "online_network_state_dict": below("encoder.", in_places(own)),
        "target_network_state_dict": below("encoder.", in_places(other)),
    },
    "byol3.pt": lambda own, other: (
        below("net.", own) | below("online_encoder.net.", own) | below("target_encoder.net.", other)
    ),
    "solo.ckpt": lambda own, other: {
        "state_dict": below("momentum_backbone.", other)
        | below("backbone.", own)
        | {"classifier.weight": torch.zeros(10, 128)},
        "pytorch-lightning_version": "1.5.3",
    },
    "moco.pth.tar": lambda own, other: {
        "state_dict": below("module.encoder_k.", other) | below("module.encoder_q.", own)
    },
    "timm.pth.tar": lambda own, other: {"state_dict_ema": other, "state_dict": own},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_trained_encoder_is_found_and_never_its_moving_average(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = network()
    other = {name: tensor + 1 for name, tensor in own.items()}
    path = saved(tmp_path / name, LAYOUTS[name](own, other))
    pretrained = load_pretrained(path)
    assert same(pretrained, own)
    count = len(own)
    assert str(pretrained.receipt).startswith(f"{count}/{count} tensors, ")
    printed = capsys.readouterr().err
    assert f"weights: {pretrained.receipt}" in printed
    assert "mean 0.485, 0.456, 0.406" in printed and "224 px (assumed" in printed


@pytest.mark.parametrize("only", ["momentum_backbone.", "target_network.module.", "teacher."])
def test_a_moving_average_alone_is_refused_by_its_name(tmp_path: Path, only: str) -> None:
    path = saved(tmp_path / "weights.pth", below(only, network()))
    with pytest.raises(CheckpointError, match=f"only as a moving average .*{only[:6]}"):
        load_pretrained(path)


def test_two_encoders_that_differ_are_refused(tmp_path: Path) -> None:
    two = below("encoder.", network()) | below("backbone.", network(), shift=1.0)
    with pytest.raises(CheckpointError, match="2 encoders that differ, below 'backbone"):
        load_pretrained(saved(tmp_path / "weights.pth", two))


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod."])
def test_a_network_beside_a_wrapped_one_that_differs_is_refused(tmp_path: Path, wrap: str) -> None:
    plain = network()
    alike = plain | {f"{wrap}{name}": tensor for name, tensor in plain.items()}
    other = plain | below(wrap, plain, shift=1e-3)
    assert load_pretrained(saved(tmp_path / "alike.pth", alike)).receipt.matched > 0
    with pytest.raises(CheckpointError, match="two networks that differ, one of them wrapped"):
        load_pretrained(saved(tmp_path / "differ.pth", other))


def test_the_same_encoder_in_two_precisions_is_two_encoders(tmp_path: Path) -> None:
    half = {f"backbone.{name}": tensor.half() for name, tensor in network().items()}
    with pytest.raises(CheckpointError, match="2 encoders that differ"):
        load_pretrained(saved(tmp_path / "weights.pth", below("encoder.", network()) | half))


@pytest.mark.parametrize(
    "model",
    [
        {"arch": "resnet34"},
        {"arch": "resnet50"},
        {"arch": "resnet101"},
        {"arch": "resnet18", "width": 2.0},
        {"stem": "small"},
        {"in_channels": 1},
    ],
)
def test_architecture_width_and_stem_are_recognised(tmp_path: Path, model: Any) -> None:
    tensors = network(**model)
    pretrained = load_pretrained(saved(tmp_path / "weights.pt", tensors))
    assert same(pretrained, tensors)
    for key, value in (SMALL | model).items():
        assert getattr(pretrained.model, key) == value, key
    assert pretrained.size_px == (32 if "stem" in model else 224)
    assert len(pretrained.mean) == pretrained.model.in_channels


def test_old_files_lack_counts_of_batches(tmp_path: Path) -> None:
    old = {n: t for n, t in network().items() if not n.endswith("num_batches_tracked")}
    receipt = load_pretrained(saved(tmp_path / "old.pth", old)).receipt
    assert (receipt.matched, receipt.total) == (len(old), len(old))


class SoloLearn(nn.Module):
    """What solo-learn trains on small images, beside its projector."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()
        self.backbone.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
        self.backbone.maxpool = nn.Identity()
        self.projector = projector
        self.momentum_projector = copy.deepcopy(projector)
        self.classifier = nn.Linear(512, 10)
        for each in (self.backbone, self.projector, self.momentum_projector):
            stir(each.state_dict())


def perceptron() -> list[nn.Module]:
    return [nn.Linear(512, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 20)]


@pytest.mark.parametrize("kind", ["solo-learn", "HARL"])
def test_solo_learns_and_harls_networks_compute_the_same_here(tmp_path: Path, kind: str) -> None:
    flat = [nn.Flatten()] if kind == "HARL" else []  # HARL's projector pools first
    theirs = SoloLearn(nn.Sequential(*flat, *perceptron())).eval()
    if kind == "HARL":
        theirs.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 9))
    state = theirs.state_dict()
    path = saved(tmp_path / "last.ckpt", {"state_dict": state, "hyper_parameters": {"lr": 0.2}})
    pretrained = load_pretrained(path)
    assert pretrained.receipt.naming == f"{kind} names"
    assert (pretrained.model.stem, pretrained.model.projector_hidden) == ("small-pad2", 48)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features = pretrained.backbone(images).mean((2, 3))
        expected = theirs.backbone(images)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
        assert pretrained.projector is not None
        torch.testing.assert_close(
            pretrained.projector(expected), theirs.projector(expected), rtol=1e-5, atol=1e-5
        )
    again = random_like(pretrained, seed=3)
    assert again.projector is not None and again.receipt.matched == 0
    assert again.weights_sha256 != pretrained.weights_sha256
    with pytest.raises(ConfigError, match=r"set model\.stem to small-pad2"):
        open_initial(path, ModelConfig(arch="resnet18", stem="small"))
    open_initial(path, ModelConfig(arch="resnet18", stem="small-pad2"))


def test_a_projector_that_is_none_of_ours_is_left_out(tmp_path: Path) -> None:
    normed = nn.Sequential(*perceptron(), nn.BatchNorm1d(20))
    content = below("encoder.", network()) | below("projector.", normed.state_dict())
    assert load_pretrained(saved(tmp_path / "weights.pt", content)).projector is None


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key != name}


WRONG = {
    "part": (
        lambda: without(network(), "layer2.0.conv1.weight"),
        r"of the 120 tensors of resnet18 matched; missing: layer2\.0\.conv1\.weight",
    ),
    "shapes": (
        lambda: network() | {"layer3.0.conv1.weight": torch.zeros(3, 3)},
        r"layer3\.0\.conv1\.weight is \(3, 3\), not \(64, 32, 3, 3\)",
    ),
    "nothing": (
        lambda: {f"linear{n}.weight": torch.zeros(2, 2) for n in range(7)},
        r"0 tensors matched: expected are conv1\.weight(, [a-z0-9.]+){4}, with.*"
        r"holds linear0\.weight(, linear[1-4]\.weight){4} and 2 more",
    ),
    "unknown prefix": (lambda: below("trunk.", network()), r"stands below trunk\."),
    "other depth": (
        lambda: {n: t for n, t in network().items() if not n.startswith("layer3.1.")},
        r"a ResNet of \(2, 2, 1, 2\) BasicBlocks, which is none of resnet18",
    ),
    "deep stem": (
        lambda: without(network(), "conv1.weight") | {"conv1.0.weight": torch.zeros(2)},
        "stem is not one convolution conv1.*timm:NAME",
    ),
    "pruned": (
        lambda: without(network(), "conv1.weight") | {"conv1.weight_orig": torch.zeros(2)},
        r"not one convolution conv1 \(it has conv1\.weight_orig\), .*pruned",
    ),
    "8 bits": (
        lambda: network() | {"conv1.weight": torch.zeros(16, 3, 7, 7).to(torch.float8_e5m2)},
        r"'conv1\.weight' holds torch\.float8_e5m2, .*16 bits or more",
    ),
    "sparse": (
        lambda: network() | {"conv1.weight": torch.zeros(16, 3, 7, 7).to_sparse()},
        r"'conv1\.weight' holds a tensor of torch\.sparse_coo",
    ),
    "nested": (
        lambda: network() | {"conv1.weight": torch.nested.nested_tensor([torch.zeros(3)] * 2)},
        r"'conv1\.weight' holds a nested tensor",
    ),
    "without values": (
        lambda: {name: tensor.to("meta") for name, tensor in network().items()},
        r"holds no values \(device meta\)",
    ),
    "not finite": (
        lambda: network() | {"bn1.weight": torch.full((16,), torch.nan)},
        r"bn1\.weight holds values that are not finite",
    ),
    "code": (
        lambda: {"state_dict": network(), "args": argparse.Namespace(lr=1)},
        r"object of type argparse\.Namespace, .*could run code.*weights_only=False",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_match_whole_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    content, named = WRONG[kind]
    path = saved(tmp_path / "weights.pth", content())
    with pytest.raises(CheckpointError, match=named) as caught:
        load_pretrained(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["byol.pkl", "vit.npz", "model.h5", "model.ckpt-10.index", "model.ckpt-10", "saved"]
)
def test_files_of_tensorflow_and_jax_name_their_converters(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "saved":
        path.mkdir()
        (path / "saved_model.pb").touch()
    elif name == "model.ckpt-10":
        (tmp_path / "model.ckpt-10.index").touch()
    else:
        path.touch()
    with pytest.raises(CheckpointError, match=r"simclr-converter .*byol-convert"):
        load_pretrained(path)


def test_a_name_of_any_length_is_read(tmp_path: Path) -> None:
    """With .index after it, as TensorFlow's prefixes have, it would be too long."""
    tensors = network()
    assert same(load_pretrained(saved(tmp_path / f"{'n' * 251}.pth", tensors)), tensors)


def test_preprocessing_is_stated_or_assumed_and_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "simclr.pth", network())
    pretrained = load_pretrained(path, mean=(0, 0, 0), std=(1, 1, 1), size_px=160)
    assert (pretrained.mean, pretrained.std, pretrained.size_px) == ((0, 0, 0), (1, 1, 1), 160)
    assert "mean 0, 0, 0, std 1, 1, 1, 160 px\n" in capsys.readouterr().err
    load_pretrained(path, mean=(0, 0, 0))
    assert "px (std and size_px assumed: the file does not say)\n" in capsys.readouterr().err
    load_pretrained(path)
    assert "224 px (assumed: the file does not say)\n" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--mean has 1 values, .*3 channels"):
        load_pretrained(path, mean=(0.5,))


def test_a_run_says_where_it_is_from(tmp_path: Path) -> None:
    written, tensors = checkpoint(tmp_path / "run", heads=True, projector_hidden=64, **SMALL)
    for path in (tmp_path / "run", written.path, written.path.parent):
        pretrained = load_pretrained(path)
        assert str(pretrained.receipt) == (
            f"120/120 tensors, torchvision names, {tmp_path / 'run'} step 3"
        )
        assert same(pretrained, tensors) and pretrained.projector is not None
        assert pretrained.projector.out.in_features == 64


@pytest.mark.parametrize("name", ["weights.onnx", "nowhere", "."])
def test_other_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(HarlError, match=r"onnx|holds no checkpoint|does not exist"):
        load_pretrained(tmp_path / name)
