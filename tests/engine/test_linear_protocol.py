"""The linear protocol on one rank: what chooses, where results stand, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.finetune import HEAD_LR_GRID, linear_protocol
from harl_fast.engine.loop import Loop
from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import load_encoder, load_pretrained
from harl_fast.engine.stop import StopAction
from harl_fast.errors import ConfigError
from harl_fast.eval.results import read_result
from harl_fast.tools.card import results_of
from harl_fast.tools.comparison import find_results, freshly_initialised
from tests.engine.support import CPU
from tests.engine.tuning import BATCH, CLASSES, leave_at, trained_further


def test_the_linear_protocol_chooses_on_held_out_images(
    machine: Machine, folder: Path, sets: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"ckpt": folder, "data": sets, "engine_file": CPU}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harl_fast.engine.deepspeed.stop", lambda: None)
        assert linear_protocol(preset="byol", epochs=3, batch=BATCH, **common) == 0
    assert (folder / "linear" / "colours-byol" / "finished").exists()
    result = read_result(folder / "eval" / "colours-imagenet-byol")
    assert [trial["lr"] for trial in result.trials] == [0.2 * factor for factor in HEAD_LR_GRID]
    best = max(trial["held_out_top1"] for trial in result.trials)
    assert result.choice["held_out_top1"] == best
    length = {"train_epochs": 3, "train_steps": 0, "train_batch_size": BATCH}
    assert result.settings == length
    assert result.data["train_count"] == 90 and "10 held-out" in result.choice["chosen_on"]
    encoder, _ = load_encoder(folder)
    assert result.head is not None and result.head.weight.shape == (CLASSES, encoder.out_channels)
    with pytest.raises(ConfigError, match="none of seed-readme"):
        linear_protocol(preset="x", **common)


@pytest.mark.parametrize("from_step_file", [False, True])
def test_the_linear_protocols_results_stand_beside_the_others(
    machine: Machine, folder: Path, sets: Path, from_step_file: bool
) -> None:
    ckpt = open_checkpoint(folder).path if from_step_file else folder
    common: dict[str, Any] = {"ckpt": ckpt, "data": sets, "engine_file": CPU, "random": True}
    common |= {"epochs": 1, "batch": BATCH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harl_fast.engine.deepspeed.stop", lambda: None)
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr(Loop, "_agree", leave_at(2))
            assert linear_protocol(**common) == 0
        trained = folder / "linear" / "colours-seed-readme"
        baseline = trained.with_name(f"{trained.name}-random")
        assert (trained / "preempted").exists() and not baseline.exists()  # the stop was for both
        assert linear_protocol(**common) == 0
    assert (trained / "finished").exists() and (baseline / "finished").exists()
    (of_card,) = results_of(load_pretrained(folder))
    assert of_card.protocol == "imagenet" and of_card.checkpoint["step"] == 12
    assert find_results([folder]) == [(folder / "eval" / "colours-imagenet").resolve()]
    random = read_result(folder / "eval" / "colours-imagenet-random")
    assert freshly_initialised(random) and random.protocol == "imagenet"


def test_a_linear_protocol_does_not_take_an_earlier_networks_result_for_its_own(
    machine: Machine, folder: Path, sets: Path, tmp_path: Path
) -> None:
    later = trained_further(folder, tmp_path / "later")
    same: dict[str, Any] = {"data": sets, "engine_file": CPU, "run": tmp_path / "lin"}
    same |= {"epochs": 1, "batch": BATCH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harl_fast.engine.deepspeed.stop", lambda: None)
        assert linear_protocol(ckpt=folder, **same) == 0
        assert linear_protocol(ckpt=folder, **same) == 0
        with pytest.raises(ConfigError, match=r"move .*lin away to begin again"):
            linear_protocol(ckpt=later, **same)


def test_a_stop_file_in_the_run_ends_its_random_baseline_too(
    machine: Machine, folder: Path, sets: Path
) -> None:
    common: dict[str, Any] = {"ckpt": folder, "data": sets, "engine_file": CPU, "random": True}
    common |= {"epochs": 1, "batch": BATCH}
    agree, trained = Loop._agree, folder / "linear" / "colours-seed-readme"

    def touching(loop: Loop) -> StopAction:
        if loop.folder.path != trained:
            (trained / "stop").touch()
        return agree(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harl_fast.engine.deepspeed.stop", lambda: None)
        patch.setattr("harl_fast.engine.stop.LOOK_S", 0.0)
        patch.setattr(Loop, "_agree", touching)
        assert linear_protocol(**common) == 0
    assert (trained / "preempted").exists() and not (trained / "stop").exists()
    assert (trained.with_name(f"{trained.name}-random") / "preempted").exists()
