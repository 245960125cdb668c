"""The whole line on the caller's own photos: containers, pretraining, and better features."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.launch.jobs import deepspeed, run


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_pretraining_beats_random_features(real_images: Path, tmp_path: Path) -> None:
    """Twenty minutes and more: the README's command for a set of a few thousand photos."""
    data, folder, log = tmp_path / "data", tmp_path / "run", tmp_path / "log"
    size = ["--max-resolution", "160"]
    beton = [sys.executable, "-m", "preprocess.beton", "--data", real_images, "--out", data, *size]
    train = [*deepspeed(1), "launch/pretrain.py", "--deepspeed_config", "ds_configs/cpu.json"]
    train += ["--config", "small", "--data", data, "--run", folder]
    judge = [sys.executable, "launch/lineval.py", "--ckpt", folder, "--data", data, "--random"]
    for command in (beton, train, judge):
        result = run(command, log=log, limit_s=7000)
        assert result.code == 0, result.text
    scores = json.loads((folder / "lineval.json").read_text())
    trained, random = (scores[name]["linear"]["metrics"] for name in ("pretrained", "random"))
    assert trained["mean_per_class"] > random["mean_per_class"] + 3.0
