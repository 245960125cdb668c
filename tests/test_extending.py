"""One dummy of each extension point, added from outside the package as docs/extending.md says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harl_fast import BACKBONES, LOSS_TERMS, Backbone, LossTerm, ModelConfig
from harl_fast.config import LossConfig, RunConfig
from harl_fast.engine.checkpoint.format import write_checkpoint
from harl_fast.engine.monitor.sinks import log_line
from harl_fast.engine.networks import build_model, load_encoder
from harl_fast.engine.views import view_geometry
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.model.harl import HARL
from harl_fast.optim.build import build_optimizer

HEADS = {"projector_hidden": 8, "projector_out": 4, "predictor_hidden": 8}


class Tiny(Backbone):
    """A map of one cell per 16 pixels."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.out_channels = 8
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """Add the backbone for one test; return the section that asks for it."""
    monkeypatch.setitem(BACKBONES, "tiny", Tiny)
    return ModelConfig.model_validate({"arch": "tiny", **HEADS})


def batch() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(6, 3, 64, 64, generator=generator) for _ in range(2)]
    return views, [torch.rand(6, 4, 4, generator=generator) for _ in range(2)]


def test_a_backbone_is_trained_saved_and_loaded(tiny: ModelConfig, tmp_path: Path) -> None:
    config = RunConfig(epochs=20, model=tiny)
    assert [view.cells for view in view_geometry(config)] == [14, 14]  # of 224 px
    harl = build_model(config)
    optimizer = build_optimizer(config.optim, harl)
    before = {name: p.detach().clone() for name, p in harl.named_parameters()}
    loss, _ = harl(*batch(), alpha=1.0, beta=0.5)
    loss.backward()
    optimizer.step()
    ema_update(*ema_pairs(harl.target, harl), tau=0.5)
    for name, parameter in harl.named_parameters():
        assert not torch.equal(parameter, before[name]), name

    write_checkpoint(
        tmp_path,
        tensors={f"online.{name}": tensor for name, tensor in harl.state_dict().items()},
        record={
            "step": 1,
            "epoch": 0,
            "epoch_step": 1,
            "config": config,
            "engine": {},
            "data": {},
        },
    )
    encoder, found = load_encoder(tmp_path)
    assert found == config
    views, _ = batch()
    assert torch.equal(encoder(views[0]), harl.backbone.eval()(views[0]))


def test_a_loss_term_is_weighted_and_reported(
    tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ring(foreground: Tensor) -> Tensor:
        return 4.0 * foreground * (1.0 - foreground)

    monkeypatch.setitem(LOSS_TERMS, "ring", LossTerm(region=ring))
    results = {}
    for weight in (0.0, 0.25):
        torch.manual_seed(0)
        harl = HARL(tiny, LossConfig(type="byol", extra={"ring": weight}))
        results[weight] = harl(*batch(), alpha=1.0, beta=0.5)
    (without, terms), (added, figures) = results.values()
    assert "loss/ring" not in terms  # a weight of 0 computes nothing
    torch.testing.assert_close(added, without + 0.25 * figures["loss/ring"])
    record = dict.fromkeys(("z_std", "fg", "empty", "lr", "tau", "eta_s", "img_s"), 1.0)
    record |= {"epoch": 1, "step": 1, "loss": 1.0, "wait_worst": 0.0}
    assert "ring 1.2345" in log_line(record | {"loss/ring": 1.2345}, epochs=2)
