"""Checkpoints: what they hold, that a crash leaves one to resume from, and how damage is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from harl_fast.engine.checkpoint import format as module
from harl_fast.engine.checkpoint.format import (
    Checkpoint,
    last_before,
    open_checkpoint,
    prune,
    write_checkpoint,
)
from harl_fast.engine.networks import load_encoder, random_encoder
from harl_fast.errors import CheckpointError
from tests.engine.support import tiny_config


def save(
    folder: Path, tmp_path: Path, *, step: int = 3, tensors: dict[str, Any] | None = None
) -> Checkpoint:
    record = {
        "step": step,
        "epoch": step // 2,
        "epoch_step": step % 2,
        "config": tiny_config(tmp_path),
        "engine": {"train_batch_size": 16},
        "data": {"count": 100, "beton_sha256": "0" * 64},
    }
    filled = {"online.a": torch.arange(5.0)} if tensors is None else tensors
    return write_checkpoint(folder, tensors=filled, record=record)


def test_what_is_written_reads_back_by_prefix(tmp_path: Path) -> None:
    tensors = {
        "online.a": torch.randn(3, 4),
        "online.ab.c": torch.tensor(7),
        "onlineish.a": torch.zeros(2),
        "target.a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    save(tmp_path / "run" / "checkpoints", tmp_path, tensors=tensors)
    found = open_checkpoint(tmp_path / "run")
    assert set(found.tensors("online")) == {"a", "ab.c"}
    assert torch.equal(found.tensors("online")["a"], tensors["online.a"])
    assert torch.equal(found.tensors("target")["a"], tensors["target.a"])
    assert found.tensors("optim") == {}
    assert found.record.step == 3 and found.record.config == tiny_config(tmp_path)
    assert found.path.stat().st_mode == found.path.with_suffix(".json").stat().st_mode


def test_a_record_may_name_paths_that_are_no_utf8(tmp_path: Path) -> None:
    place = os.fsdecode(b"runs/\xff")
    config = tiny_config(tmp_path)
    record = {"step": 0, "epoch": 0, "epoch_step": 0, "config": config, "engine": {}}
    tensors = {"online.a": torch.zeros(1)}
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, tensors=tensors, record={**record, "data": {"ckpt": place}})
    assert open_checkpoint(folder, verify=True).record.data["ckpt"] == place


def test_a_run_folder_its_checkpoints_and_a_file_lead_to_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save(folder, tmp_path, step=1)
    newest = save(folder, tmp_path, step=2)
    for path in (tmp_path / "run", folder, newest.path, newest.path.with_suffix(".json")):
        assert open_checkpoint(path) == newest


@pytest.mark.parametrize("stage", ["save_tensors", "write_json", "write_text"])
def test_a_crash_at_any_point_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    folder = tmp_path / "checkpoints"
    before = save(folder, tmp_path, step=1)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, stage, crash)
        save(folder, tmp_path, step=2)
    assert open_checkpoint(folder) == before
    assert not list(folder.glob("*.tmp"))
    assert save(folder, tmp_path, step=2) == open_checkpoint(folder)


def test_retention_keeps_the_newest_and_the_round_epochs(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in range(1, 14):
        save(folder, tmp_path, step=step)  # two steps per epoch
    prune(folder, keep_last=2, keep_every_epochs=3)
    kept = sorted(int(path.stem.partition("-")[2]) for path in folder.glob("*.safetensors"))
    assert kept == [6, 12, 13]  # epoch 3, epoch 6 (also among the newest), the last
    assert sorted(path.stem for path in folder.glob("*.json")) == [
        path.stem for path in sorted(folder.glob("*.safetensors"))
    ]


def test_a_run_that_went_back_keeps_what_it_writes_now(tmp_path: Path) -> None:
    """Newer checkpoints of the abandoned schedule neither crowd out the new ones nor go."""
    folder = tmp_path / "checkpoints"
    for step in (1, 3, 7, 9):
        save(folder, tmp_path, step=step)
    (folder / "latest").write_text("step-00000003\n")
    save(folder, tmp_path, step=5)
    prune(folder, keep_last=2, keep_every_epochs=100)
    kept = sorted(int(path.stem.partition("-")[2]) for path in folder.glob("*.safetensors"))
    assert kept == [3, 5, 7, 9]
    assert open_checkpoint(folder).record.step == 5


def test_the_last_good_one_before_a_step_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    written = {step: save(folder, tmp_path, step=step) for step in (2, 4, 6)}
    damage(written[4].path, "short")
    assert last_before(folder, step=6) == written[6].path
    assert last_before(folder, step=5) == written[2].path
    assert last_before(folder, step=1) is None
    assert last_before(tmp_path / "none", step=9) is None


def test_leftovers_of_killed_saves_are_swept_and_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in range(1, 6):
        save(folder, tmp_path, step=step)
    orphan = folder / "step-00000002.json"
    orphan.unlink()  # killed between the tensors and their record
    (folder / ".step-00000006.safetensors.1.tmp").write_bytes(b"half")
    prune(folder, keep_last=2, keep_every_epochs=100)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        ["latest"] + [f"step-0000000{n}.{kind}" for n in (4, 5) for kind in ("json", "safetensors")]
    )


def damage(path: Path, kind: str) -> None:
    note = path.with_suffix(".json")
    if kind == "short":
        path.write_bytes(path.read_bytes()[:-3])
    elif kind == "tensors gone":
        path.unlink()
    elif kind == "record gone":
        note.unlink()
    elif kind == "record broken":
        note.write_text(note.read_text()[:40])
    elif kind == "other format":
        note.write_text(json.dumps({**json.loads(note.read_text()), "format_version": 99}))
    elif kind == "garbage":
        path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    "kind", ["short", "tensors gone", "record gone", "record broken", "other format", "garbage"]
)
def test_damage_is_told_with_what_to_use_instead(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, tmp_path, step=1)
    newest = save(folder, tmp_path, step=2)
    damage(newest.path, kind)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path).tensors("online")
    assert "step-00000002" in str(caught.value)
    if kind == "other format":
        assert "99" in str(caught.value)
        return
    assert "step-00000001" in str(caught.value) and "latest" in str(caught.value)
    (folder / "latest").write_text("step-00000001\n")  # the advice works
    assert open_checkpoint(tmp_path).record.step == 1


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)


def test_the_encoder_comes_back_with_its_configuration(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    encoder = random_encoder(config, seed=5)
    tensors = {f"online.backbone.{name}": t for name, t in encoder.state_dict().items()}
    save(tmp_path / "run" / "checkpoints", tmp_path, tensors=tensors)
    loaded, found = load_encoder(tmp_path / "run")
    assert found == config and not loaded.training
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), encoder(images))


def test_an_encoder_that_is_not_there_is_told(tmp_path: Path) -> None:
    save(tmp_path / "run" / "checkpoints", tmp_path)
    with pytest.raises(CheckpointError, match="does not hold the backbone"):
        load_encoder(tmp_path / "run")


def test_random_encoders_are_functions_of_the_seed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    state = torch.get_rng_state()
    first, again, other = (random_encoder(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    stems = [network.get_parameter("conv1.weight") for network in (first, again, other)]
    assert torch.equal(stems[0], stems[1])
    assert not torch.equal(stems[0], stems[2])
