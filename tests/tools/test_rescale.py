"""Kernels of another scale: the same function, and what optimizers make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.config import ModelConfig
from harl_fast.engine.networks import load_pretrained
from harl_fast.errors import ConfigError, OutputError
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.optim.groups import param_groups
from harl_fast.optim.lars import LARS
from harl_fast.tools import rescale
from tests.engine.saved import checkpoint, stir


def networks(factor: float) -> tuple[Backbone, Backbone]:
    """Return one random network twice, the second one rescaled."""
    model = ModelConfig(arch="resnet18", width=0.25)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = build_backbone(model), build_backbone(model)
    stir(first.state_dict())
    second.load_state_dict(first.state_dict())
    names = [name for name, _, _ in rescale.pairs(second)]
    rescale.rescale(second, dict.fromkeys(names, factor))
    return first, second


def test_every_convolution_has_the_norm_layer_behind_it() -> None:
    for arch, count in (("resnet18", 20), ("resnet50", 53)):
        found = list(rescale.pairs(build_backbone(ModelConfig(arch=arch, width=0.125))))
        assert len(found) == count
        for name, conv, norm in found:
            assert conv.out_channels == norm.num_features, name
        assert len({id(norm) for _, _, norm in found}) == count


@pytest.mark.parametrize("factor", [0.01, 0.3, 16.8, 300.0])
def test_features_stay_where_they_were(factor: float) -> None:
    first, second = (network.eval() for network in networks(factor))
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = first(x), second(x)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    torch.testing.assert_close(second.conv1.weight, first.conv1.weight * factor)


def trained(factor: float, make: Callable[[nn.Module], torch.optim.Optimizer]) -> Tensor:
    """Return what a rescaled network with a linear head computes after 20 steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 5, (32,), generator=generator)
    network, _ = networks(1.0)
    # As training leaves them: statistics of the images, to which the gains are corrected.
    for _, _, norm in rescale.pairs(network):
        norm.momentum = 1.0
    network.train()(images)
    rescale.rescale(network, dict.fromkeys([n for n, _, _ in rescale.pairs(network)], factor))
    head = nn.Linear(network.out_channels, 5)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.05)
        head.bias.zero_()
    optimizer = make(nn.ModuleDict({"backbone": network, "head": head}))
    for _ in range(20):
        optimizer.zero_grad()
        loss = functional.cross_entropy(head(network(images).mean((2, 3))), labels)
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        logits: Tensor = head(network(images).mean((2, 3)))
    return logits


def lars(module: nn.Module) -> torch.optim.Optimizer:
    return LARS(param_groups(module, weight_decay=0.0), lr=LR, momentum=0.9)


def momentum(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)


LR = 0.005


def still(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.0)


def test_lars_stays_the_same_function_and_momentum_does_not() -> None:
    """From a network and from its rescaled twin; both optimizers move the function."""
    before = trained(1.0, still)
    apart = {}
    for make in (lars, momentum):
        first, second = trained(1.0, make), trained(8.0, make)
        scale = float(first.abs().max())
        apart[make.__name__] = float((first - second).abs().max()) / scale
        assert float((first - before).abs().max()) / scale > 0.2
    assert apart["lars"] < 0.01 < 0.05 < apart["momentum"], apart


def test_the_program_prints_norms_and_writes_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "a", arch="resnet18", width=0.25)
    out = tmp_path / "out"
    given = ["--ckpt", str(tmp_path / "a"), "--factor", "4", "--out", str(out)]
    given += ["--mean", "0,0,0", "--std", "1,1,1", "--size-px", "64"]
    assert rescale.main(given) == 0
    printed = capsys.readouterr().out
    assert "layer1.0.conv1" in printed and "geometric mean of the ratios" in printed
    first, second = load_pretrained(tmp_path / "a"), load_pretrained(out)
    assert (second.mean, second.std, second.size_px) == ((0.0,) * 3, (1.0,) * 3, 64)
    own, other = rescale.norms(first.backbone), rescale.norms(second.backbone)
    assert all(other[name] == pytest.approx(4 * own[name]) for name in own)
    assert "convolutions x 4.0" in second.receipt.source
    back = tmp_path / "back"
    given = ["--ckpt", str(out), "--like", str(tmp_path / "a"), "--out", str(back)]
    assert rescale.main(given) == 0
    again = rescale.norms(load_pretrained(back).backbone)
    assert all(again[name] == pytest.approx(own[name]) for name in own)


def test_what_cannot_be_rescaled_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a", arch="resnet18", width=0.25)
    checkpoint(tmp_path / "b", arch="resnet18", width=0.5)
    pair = ["--ckpt", str(tmp_path / "a"), "--like", str(tmp_path / "b")]
    with pytest.raises(ConfigError, match=r"has width 0\.5, .*has 0\.25"):
        rescale.main(pair)
    with pytest.raises(ConfigError, match="--out needs --factor"):
        rescale.main(["--ckpt", str(tmp_path / "a"), "--out", str(tmp_path / "out")])
    with pytest.raises(OutputError, match=r"--out .* is not empty"):
        rescale.main(["--ckpt", str(tmp_path / "a"), "--factor", "2", "--out", str(tmp_path)])
