"""Two real ranks: a run that is probed, drawn and logged often is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harl_fast.engine.checkpoint.format import open_checkpoint
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, STEPS, tiny_file
from tests.launch.jobs import ROOT, deepspeed, run

WATCHED = ("log.probe_epochs=1", "log.probe_images=40", "log.sheet_epochs=1", "log.every_steps=1")


@pytest.mark.slow
def test_watching_two_ranks_changes_no_bit(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_beton(tmp_path / "data" / "train.beton", plain_item, count=100)
    common = ["--deepspeed_config", ROOT / "ds_configs" / "cpu.json", "--data", tmp_path / "data"]
    common += ["--engine-set", f"train_batch_size={BATCH}", "--config", tiny_file(tmp_path)]
    common += ["--set", "model.stem=small"]  # else its small feature maps are warned of
    for name, settings in {"plain": ("log.every_steps=100",), "watched": WATCHED}.items():
        sets = [word for setting in settings for word in ("--set", setting)]
        folder = tmp_path / name
        command = [*deepspeed(2), "launch/pretrain.py", *common, *sets, "--run", folder, "--quiet"]
        result = run(command, log=tmp_path / f"{name}.log")
        assert result.code == 0, result.text
        assert not result.lines("warning"), result.text
        state = json.loads((folder / "run.json").read_text())
        assert (state["state"], state["step"]) == ("finished", 2 * STEPS)
    plain, watched = (open_checkpoint(tmp_path / name) for name in ("plain", "watched"))
    for prefix in ("online", "target", "optim"):
        one, other = plain.tensors(prefix), watched.tensors(prefix)
        assert one.keys() == other.keys() and one
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), f"{prefix}.{name}"
    lines = (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["epoch"] for r in records if "probe_knn" in r] == [1, 2]
    assert len(list((tmp_path / "watched" / "sheets").glob("*.png"))) == 2
    assert all(r["wait"] <= r["wait_worst"] for r in records if "loss" in r)
