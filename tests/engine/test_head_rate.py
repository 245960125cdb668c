"""A part's own learning rate: the predictor's, and in fine-tuning the head's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harl_fast.engine.machine import Machine
from harl_fast.engine.snapshot import collect_state
from tests.engine.support import STAGES, advance, stepper, weights
from tests.engine.tuning import saved, tune, write_sets


@pytest.mark.parametrize("stage", STAGES)
def test_a_factor_of_the_rate_is_the_predictors_alone(
    machine: Machine, tmp_path: Path, stage: int
) -> None:
    moved, ends, saved_names = [], [], []
    for scale in (1, 8):
        own = (f"optim.predictor_lr_scale={scale}", "optim.name=sgd", "optim.warmup_epochs=0")
        run = stepper(machine, tmp_path, stage=stage, config=own)
        before = weights(run)
        advance(run)
        ends.append(weights(run))
        moved.append({name: ends[-1][name] - weight for name, weight in before.items()})
        saved_names.append(collect_state(run.state).keys())
    assert saved_names[0] == saved_names[1]
    for name, change in moved[0].items():
        if name.startswith("predictor."):
            # The weights are rounded, to 2^-24 of themselves.
            slack = 2e-7 * ends[1][name].abs().max().item()
            torch.testing.assert_close(moved[1][name], 8 * change, rtol=1e-4, atol=16 * slack)
        else:
            assert torch.equal(ends[0][name], ends[1][name]), name
    assert any(name.startswith("predictor.") and change.any() for name, change in moved[0].items())


def test_a_factor_of_the_rate_is_the_heads_alone(
    machine: Machine, run: Path, tmp_path: Path
) -> None:
    flags = {"train_steps": 1, "weight_decay": 0.1}  # a head of zeros moves nothing else at first
    sets = write_sets(tmp_path / "sets", val=4)
    ends = []
    for factor in (1.0, 3.0):
        folder = tmp_path / f"{factor}"
        every = {**flags, "head_lr_mult": factor}
        assert tune(folder, ckpt=run, data=sets, flags=every, mode="train") == 0
        ends.append(saved(folder))
    weights = [end["online.heads.0.weight"] for end in ends]
    torch.testing.assert_close(weights[1], 3.0 * weights[0])
    name = "online.backbone.conv1.weight"
    assert weights[0].any() and torch.equal(ends[0][name], ends[1][name])
    assert not torch.equal(ends[0][name], saved(run)[name])
