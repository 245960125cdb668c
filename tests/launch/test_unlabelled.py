"""A stranger's photos: any folder to a container, trained on by the real launcher."""

from __future__ import annotations

import sys
from pathlib import Path

from harl_fast.engine.checkpoint.format import open_checkpoint
from tests.engine.support import BATCH, tiny_file
from tests.launch.jobs import ROOT, deepspeed, run
from tests.preprocess.test_unlabelled import COUNT, holiday


def test_a_folder_of_photos_is_converted_and_trained_on(tmp_path: Path) -> None:
    holiday(tmp_path / "holiday")
    out, made = tmp_path / "out", [sys.executable, "-m", "preprocess.beton"]
    made += ["--data", str(tmp_path / "holiday"), "--out", str(out), "--workers", "1"]
    result = run(made, log=tmp_path / "beton.log")
    assert result.code == 0, result.text
    command = [
        *deepspeed(1), "launch/pretrain.py", "--deepspeed_config", ROOT / "ds_configs/cpu.json",
        "--config", tiny_file(tmp_path), "--set", "log.probe_epochs=1", "--engine-set",
        f"train_batch_size={BATCH}", "--data", out, "--run", tmp_path / "run",
    ]  # fmt: skip
    result = run(command, log=tmp_path / "log")
    assert result.code == 0, result.text
    assert result.lines(f"{COUNT} images, 2 epochs") and result.lines("done: 2 epochs")
    (said,) = result.lines("no online probe")
    assert "has no labels" in said and "make lineval DATA=" in said
    assert open_checkpoint(tmp_path / "run").record.epoch == 2
    judge = [sys.executable, "launch/lineval.py", "--ckpt", tmp_path / "run", "--data", out]
    result = run(judge, log=tmp_path / "lineval.log")
    (said,) = result.text.splitlines()
    assert result.code == 2 and said.startswith("error: ") and "has no labels" in said
