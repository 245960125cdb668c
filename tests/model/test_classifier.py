"""The classifier: boundaries and selectors by gradients and hooks, heads by torch's own layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.config import ModelConfig
from harl_fast.errors import ConfigError
from harl_fast.model.backbones import build_backbone
from harl_fast.model.classifier import Classifier, end_points
from harl_fast.model.heads import LinearHeads, MLPHead
from harl_fast.model.norm import RankBatchNorm2d

MODEL = ModelConfig(arch="resnet18", width=0.125)
CLASSES = 5


def classifier(**settings: Any) -> Classifier:
    torch.manual_seed(0)
    projector = MLPHead(64, 24, 16, layers=3)
    settings = {"classes": CLASSES, "projector": projector, "zero": False, **settings}
    return Classifier(build_backbone(MODEL), **settings)


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % CLASSES


def group_of(name: str) -> int:
    """Return the least boundary that freezes a parameter, or 5 for the heads."""
    if name.startswith("heads"):
        return 5
    if name.startswith("projection"):
        return 4
    part = name.split(".")[1]
    return 0 if part in ("conv1", "bn1") else int(part.removeprefix("layer"))


@pytest.mark.parametrize("boundary", [-1, 0, 1, 2, 3, 4])
def test_what_is_below_the_boundary_neither_moves_nor_gets_gradients(boundary: int) -> None:
    network = classifier(boundary=boundary, selector=-1)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        network.train()
        optimizer.zero_grad()
        network(*images())[0].backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        frozen = group_of(name) <= boundary
        assert (parameter.grad is None) is frozen, name
        if "linears" not in name or parameter.ndim > 1:  # BatchNorm undoes a bias before it
            assert torch.equal(parameter, before[name]) is frozen, name
    buffers = {name: b for name, b in network.named_buffers() if "running" in name}
    assert len(buffers) > 30
    for name, buffer in buffers.items():
        assert torch.equal(buffer, before[name]) is (group_of(name) <= boundary), name


@pytest.mark.parametrize("boundary", [-1, 0, 1, 2, 3, 4])
def test_no_graph_is_kept_below_the_boundary(boundary: int) -> None:
    network, seen = classifier(boundary=boundary), {}
    for name, module in network.backbone.named_children():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output.requires_grad)
        )
    network(*images())
    for name, graph in seen.items():
        if name.startswith(("conv", "bn", "layer")):
            frozen = group_of(f"backbone.{name}") <= boundary
            assert graph is not frozen, name


@pytest.mark.parametrize(("selector", "layers"), [(0, 0), (1, 1), (2, 2), (-1, 3)])
def test_the_selector_takes_the_projectors_first_layers(selector: int, layers: int) -> None:
    network = classifier(selector=selector).eval()
    torch.manual_seed(0)
    projector = MLPHead(64, 24, 16, layers=3).eval()
    pictures, _ = images()
    rows = network.backbone(pictures).mean((2, 3))
    steps = [
        *(
            lambda x, k=k: functional.relu(projector.norms[k](projector.linears[k](x)))
            for k in (0, 1)
        ),
        projector.out,
    ]
    for step in steps[:layers]:
        rows = step(rows)
    torch.testing.assert_close(network.features(pictures), rows)
    assert network.heads[0].in_features == rows.shape[1]
    kept = [name for name, p in network.named_parameters() if name.startswith("projection")]
    assert len(kept) == 4 * min(layers, 2) + (layers == 3)


@pytest.mark.parametrize("selector", [3, -2, 7])
def test_a_selector_beyond_the_projector_is_refused(selector: int) -> None:
    with pytest.raises(ConfigError, match="2 hidden layers: use 0"):
        classifier(selector=selector)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="the checkpoint's file lacks"):
        classifier(selector=1, projector=None)
    for boundary in (-2, 5):
        with pytest.raises(ConfigError, match="none of -1"):
            classifier(boundary=boundary)


def test_heads_that_start_at_zero_lose_ln_k() -> None:
    loss, figures = classifier(zero=True)(*images())
    assert loss.item() == pytest.approx(math.log(CLASSES), rel=1e-6)
    assert figures["loss"].item() == loss.item()


def test_the_other_start_is_small_and_the_same_for_all_heads() -> None:
    heads = LinearHeads(1000, 10, count=3, zero=False)
    assert float(heads[0].weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert all(torch.equal(head.weight, heads[0].weight) for head in heads)
    assert not any(head.bias.any() for head in heads)


def test_heads_together_are_torchs_linear_layers() -> None:
    heads, rows = LinearHeads(7, 3, count=2), torch.randn(4, 7)
    for head in heads:
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
    wanted = torch.stack([head(rows) for head in heads], dim=1)
    torch.testing.assert_close(heads(rows), wanted)


def test_the_loss_is_cross_entropy_summed_over_heads() -> None:
    network, (pictures, labels) = classifier(heads=2), images()
    nn.init.normal_(network.heads[1].weight)
    loss, figures = network(pictures, labels)
    logits = network.logits(pictures)
    each = [functional.cross_entropy(logits[:, g], labels) for g in range(2)]
    torch.testing.assert_close(loss, sum(each))
    torch.testing.assert_close(figures["loss/head1"], each[1].detach())
    best = max(float((logits[:, g].argmax(1) == labels).float().mean()) for g in range(2))
    assert float(figures["top1"]) == pytest.approx(best)


def test_end_points_are_simclrs() -> None:
    backbone = build_backbone(MODEL).eval()
    projector, heads = MLPHead(64, 24, 16).eval(), LinearHeads(64, 5, zero=False)
    pictures, _ = images(2)
    found = end_points(backbone, pictures, projector=projector, heads=heads)
    sides = {"initial_conv": 16, "initial_max_pool": 8, "block_group1": 8, "block_group2": 4}
    for name, side in {**sides, "block_group3": 2, "block_group4": 1}.items():
        assert found[name].shape[2:] == (side, side), name
    torch.testing.assert_close(found["block_group4"], backbone(pictures))
    pooled = backbone(pictures).mean((2, 3))
    for name in ("final_avg_pool", "default", "proj_head_input"):
        torch.testing.assert_close(found[name], pooled)
    torch.testing.assert_close(found["proj_head_output"], projector(pooled))
    torch.testing.assert_close(found["logits_sup"], heads[0](pooled))


@pytest.mark.parametrize(("boundary", "layers"), [(-1, 20), (0, 19), (3, 5), (4, 0)])
def test_trained_batchnorm_shares_its_statistics(boundary: int, layers: int) -> None:
    network = classifier(boundary=boundary, selector=1)
    names = set(network.state_dict())
    network.share_statistics()
    shared = [m for m in network.modules() if isinstance(m, RankBatchNorm2d)]
    assert len(shared) == layers
    assert all(m.training for m in shared)
    assert set(network.state_dict()) == names
    assert network.projection is not None
    assert network.projection.norms[0].synced is (boundary != 4)
