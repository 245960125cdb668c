"""The head's own learning rate in fine-tuning."""

from __future__ import annotations

from pathlib import Path

import torch

from harl_fast.engine.machine import Machine
from tests.engine.tuning import saved, tune, write_sets


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
