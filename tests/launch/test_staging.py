"""Trainings on copies of their containers, under the real launcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harl_fast.data.container.staging import NOTE
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, CPU, tiny_file
from tests.launch.jobs import ROOT, deepspeed, run


@pytest.mark.slow
def test_two_ranks_train_on_one_copy_which_a_second_start_keeps(tmp_path: Path) -> None:
    data, disk, log = tmp_path / "data", tmp_path / "disk", tmp_path / "log"
    data.mkdir()
    write_beton(data / "train.beton", plain_item, count=100)
    command = [ROOT / "launch" / "pretrain.py", "--deepspeed_config", CPU, "--data", data]
    command += ["--run", tmp_path / "run", "--stage-to", disk, "--config", tiny_file(tmp_path)]
    command += ["--engine-set", f"train_batch_size={BATCH}"]
    refused = run([*deepspeed(2), *command, "--set", "optim.lrr=1"], log=log)
    assert refused.code != 0 and refused.lines("optim.lr"), refused.text
    assert not disk.exists()  # settings are refused before anything is copied
    for more in ((), ("--resume", "--epochs", "3")):
        result = run([*deepspeed(2), *command, *more], log=log)
        assert result.code == 0, result.text
        assert len(result.lines("copying")) == (not more), result.text
        (folder,) = disk.iterdir()
        assert (folder / "train.beton").read_bytes() == (data / "train.beton").read_bytes()
    assert set(json.loads((folder / NOTE).read_text())) == {
        f"train.{suffix}" for suffix in ("beton", "json", "names.txt")
    }
