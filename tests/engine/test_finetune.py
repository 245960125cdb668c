"""Fine-tuning on one rank: what moves, what is evaluated, that it goes on, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harl_fast.data.loader import Batch
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.finetune_start import _fitting_batch
from harl_fast.engine.loop import Loop
from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import load_encoder, load_pretrained
from harl_fast.engine.supervised import TuneSchedule, TuneStepper
from harl_fast.errors import CheckpointError, ConfigError, DataError, OutputError
from harl_fast.eval.results import read_result
from harl_fast.finetuning import FinetuneConfig, load_finetuning
from harl_fast.tools import pictures
from harl_fast.tools.export import export_encoder
from harl_fast.tools.features import validation_features
from tests.betons import plain_item, write_beton
from tests.engine.tuning import (
    CLASSES,
    leave_at,
    result_of,
    saved,
    tinted_item,
    trained_further,
    tune,
    write_sets,
)


@pytest.fixture(scope="module")
def tuned(
    machine: Machine, run: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a run over all layers, to the end."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    assert tune(folder, ckpt=run, data=sets) == 0
    return folder


def test_a_run_leaves_what_a_pretraining_leaves_and_a_result(tuned: Path, sets: Path) -> None:
    names = {path.name for path in tuned.iterdir()}
    files = {"config.yaml", "engine.json", "provenance.json", "metrics.jsonl", "run.json"}
    assert files | {"checkpoints", "tensorboard", "finished", "eval"} <= names
    record = open_checkpoint(tuned, verify=True).record
    assert record.step == 12 and record.finetune is not None
    assert record.data["classes"] == [f"class{n}" for n in range(CLASSES)]
    assert record.data["pretrained"]["step"] == 12
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"] and "top1" in lines[0]
    result = read_result(tuned / "eval" / "colours-finetune")
    assert result.metrics["top1"].value > 50.0  # four colours
    assert result.ids.tolist() == list(range(40))
    assert result.predictions.labels.tolist() == [n % CLASSES for n in range(40)]
    assert result.names[3] == "sample3.jpg"
    assert result.checkpoint["receipt"].startswith("120/120 tensors")
    assert result.preprocessing["crop"] == 1.0  # up to 32 px


def test_a_result_on_copies_is_named_after_the_data(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    folder, more = tmp_path / "run", {"flags": {"train_epochs": 1}}
    assert tune(folder, ckpt=run, data=sets, stage_to=tmp_path / "disk", **more) == 0
    assert list((tmp_path / "disk").glob("colours-*/train.beton"))
    assert read_result(folder / "eval" / "colours-finetune").data["name"] == "colours"


def test_a_tuned_run_is_a_checkpoint_for_others(tuned: Path) -> None:
    encoder, config = load_encoder(tuned)
    assert config.model.arch == "resnet18" and config.data.views[0].size_px == 32
    weight = saved(tuned)["online.backbone.conv1.weight"]
    assert torch.equal(encoder.state_dict()["conv1.weight"], weight)


def test_a_result_is_of_the_tuned_network(tuned: Path, run: Path, sets: Path) -> None:
    result = read_result(tuned / "eval" / "colours-finetune")
    assert Path(result.checkpoint["run"]) == tuned and result.checkpoint["step"] == 12
    begun = result.checkpoint["pretrained"]
    assert Path(begun["path"]).is_relative_to(run)
    assert begun["weights_sha256"] != result.checkpoint["weights_sha256"]
    found = torch.from_numpy(validation_features(result, sets))
    assert result.head is not None
    agree = (result.head(found).argmax(1) == result.predictions.predicted).double().mean()
    assert agree >= 0.95  # of the pretrained network's features it would be chance
    moved = shutil.copytree(tuned, tuned.with_name("moved"))
    gone = {**result.checkpoint, "path": "/gone/checkpoints/step-00000012.safetensors"}
    elsewhere = dataclasses.replace(result, checkpoint=gone)
    with pytest.raises(CheckpointError, match="/gone/"):
        validation_features(elsewhere, sets)
    place = moved / "eval" / "colours-finetune"
    assert np.array_equal(validation_features(elsewhere, sets, place), found.numpy())


def test_pictures_and_exports_take_a_tuned_run(
    tuned: Path, run: Path, sets: Path, tmp_path: Path
) -> None:
    folder = tuned / "eval" / "colours-finetune"
    names = {path.name for path in pictures.draw(folder, tmp_path / "drawn", data=sets)}
    assert names == {"confusion.png", "per_class.png", "embeddings.npz", "map.png", "projector"}
    export_encoder(tuned, tmp_path / "out", head=folder / "result.json")
    exported, result = load_pretrained(tmp_path / "out"), read_result(folder)
    assert exported.weights_sha256 == result.checkpoint["weights_sha256"]
    assert exported.head is not None and result.head is not None
    assert torch.equal(exported.head.linears[0].weight, result.head.weight)
    assert list(exported.classes) == result.data["classes"]
    with pytest.raises(ConfigError, match=r"was trained on the features of .*: give a result of"):
        export_encoder(run, tmp_path / "other", head=folder / "result.json")


def test_a_head_behind_the_projector_stays(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    flags = {"ft_proj_selector": 1, "train_epochs": 1, "random": True}
    assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags) == 0
    (path,) = (tmp_path / "run" / "eval").glob("*/result.json")
    result = read_result(path)
    validation_features(result, sets)  # of what was tuned, not drawn anew
    with pytest.raises(ConfigError, match="--ft-proj-selector 0"):
        export_encoder(tmp_path / "run", tmp_path / "out", head=path)


@pytest.mark.parametrize("boundary", [0, 3, 4])
def test_frozen_tensors_and_buffers_keep_their_bits(
    machine: Machine, run: Path, sets: Path, tmp_path: Path, boundary: int
) -> None:
    flags = {"fine_tune_after_block": boundary, "ft_proj_selector": 1, "train_epochs": 1}
    assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags, mode="train") == 0
    before, after = saved(run), saved(tmp_path / "run")
    frozen = ("conv1", "bn1", *(f"layer{n}" for n in range(1, boundary + 1)))
    compared = 0
    for name, tensor in after.items():
        if not name.startswith("online.backbone."):
            continue
        is_frozen = name.split(".")[2] in frozen
        assert torch.equal(tensor, before[name]) is is_frozen, name
        compared += 1
    assert compared == 120
    linear = "online.projection.linears.0.weight"
    same = torch.equal(after[linear], before[linear.replace("projection", "projector")])
    assert same is (boundary == 4)


def test_a_stopped_and_resumed_run_has_the_same_bits(
    machine: Machine, run: Path, sets: Path, tuned: Path, tmp_path: Path
) -> None:
    for step in (3, 8):  # within the first and the second epoch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "_agree", leave_at(step))
            assert tune(tmp_path / "run", ckpt=run, data=sets, resume=step > 3) == 0
        assert (tmp_path / "run" / "preempted").exists()
        assert not (tmp_path / "run" / "eval").exists()
        assert open_checkpoint(tmp_path / "run").record.step == step
    assert tune(tmp_path / "run", ckpt=None, data=sets, resume=True) == 0
    wanted, found = saved(tuned), saved(tmp_path / "run")
    assert wanted.keys() == found.keys() and len(found) > 150
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), name
    assert result_of(tuned)["metrics"] == result_of(tmp_path / "run")["metrics"]


def test_a_subset_is_what_is_trained_on(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    advance = TuneStepper._loss

    def noted(self: TuneStepper, batch: Batch, **rest: Any) -> Any:
        seen.extend(batch.ids.tolist())
        return advance(self, batch, **rest)

    flags = {"subset": "5-per-class", "train_batch_size": 10, "train_epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TuneStepper, "_loss", noted)
        assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags) == 0
    names = (tmp_path / "run" / "subset.txt").read_text().split()
    ids = sorted(int(name.removeprefix("sample").removesuffix(".jpg")) for name in names)
    assert np.bincount(np.array(ids) % CLASSES).tolist() == [5] * CLASSES
    assert set(seen) == set(ids)
    about = result_of(tmp_path / "run")["data"]
    assert about["train_count"] == 20
    assert about["subset_sha256"] == hashlib.sha256(np.array(ids).tobytes()).hexdigest()


def test_a_presets_batch_falls_to_what_few_images_allow(
    machine: Machine, run: Path, sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = {"train_batch_size": None, "train_epochs": 2}
    common: dict[str, Any] = {"ckpt": run, "data": sets, "preset": "semi-10pct", "mode": "train"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_agree", leave_at(5))
        assert tune(tmp_path / "run", flags=flags, **common) == 0
    told = "train_batch_size 1024 is more than the 100 training images: 8 in its place"
    assert told in capfd.readouterr().err
    assert tune(tmp_path / "run", flags=flags, resume=True, **common) == 0
    record = open_checkpoint(tmp_path / "run").record
    assert record.step == 24 and record.finetune is not None
    assert record.finetune.train_batch_size == 8
    for number, asked in enumerate(({"flags": {"train_batch_size": 1024}}, {"preset": "own.yaml"})):
        (tmp_path / "own.yaml").write_text("train_batch_size: 1024\n")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="fewer than"):
            patch.chdir(tmp_path)
            tune(tmp_path / f"run{number}", **{**common, "flags": flags, **asked})


@pytest.mark.parametrize(
    ("count", "ranks", "batch"),
    [(414, 1, 32), (414, 2, 32), (414, 3, 48), (30, 1, 8), (30, 2, 16), (5, 1, 4), (5, 2, 4)],
)
def test_a_lowered_batch_leaves_steps_and_images_for_batch_norm(
    count: int, ranks: int, batch: int
) -> None:
    assert _fitting_batch(count, ranks=ranks) == batch


def test_steps_may_end_within_an_epoch(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    flags = {"train_steps": 8, "optimizer": "lars", "learning_rate_scaling": "sqrt"}
    assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags) == 0
    assert open_checkpoint(tmp_path / "run").record.step == 8
    assert tune(tmp_path / "run", ckpt=None, data=sets, flags=flags, resume=True) == 0


@pytest.mark.parametrize("optimizer", ["lars", "adam", "adamw"])
def test_other_optimizers_train_and_resume(
    machine: Machine, run: Path, sets: Path, tmp_path: Path, optimizer: str
) -> None:
    flags = {"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 1e-4}
    assert tune(tmp_path / "run", ckpt=run, data=sets, flags=flags) == 0
    assert tune(tmp_path / "run", ckpt=None, data=sets, flags=flags, resume=True) == 0


def test_mode_eval_judges_what_is_there(
    machine: Machine, tuned: Path, sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, metrics = saved(tuned), result_of(tuned)["metrics"]
    assert tune(tuned, ckpt=None, data=sets, mode="eval") == 0
    receipt = f"weights: 120/120 tensors, torchvision names, {tuned} step 12"
    assert receipt in capsys.readouterr().err
    assert result_of(tuned)["metrics"] == metrics
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved(tuned).items())


def test_a_place_for_results_that_cannot_be_is_told_before_the_training(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    place, flags = tmp_path / "run", {"train_epochs": 1}
    assert tune(place, ckpt=run, data=sets, flags=flags, mode="train") == 0
    before = (place / "metrics.jsonl").read_bytes()
    (place / "eval").touch()
    again = {"ckpt": None, "data": sets, "resume": True, "allow_change": ["train_epochs"]}
    with pytest.raises(OutputError, match=r"--run .*/eval is not a folder"):
        tune(place, flags={"train_epochs": 2}, **again)
    assert (place / "metrics.jsonl").read_bytes() == before


def test_heads_together_are_heads_alone(
    machine: Machine, run: Path, sets: Path, tmp_path: Path
) -> None:
    flags = {"fine_tune_after_block": 4, "hold_out": 10, "train_epochs": 4}
    grid = (0.3, 1.0, 10.0)
    assert tune(tmp_path / "all", ckpt=run, data=sets, flags={**flags, "head_lr_grid": grid}) == 0
    together = saved(tmp_path / "all")
    for number, factor in enumerate(grid):
        folder = tmp_path / f"one{number}"
        assert tune(folder, ckpt=run, data=sets, flags={**flags, "head_lr_grid": (factor,)}) == 0
        alone = saved(folder)
        for part in ("weight", "bias"):
            one, all_ = alone[f"online.heads.0.{part}"], together[f"online.heads.{number}.{part}"]
            torch.testing.assert_close(all_, one, rtol=1e-5, atol=1e-6)
    trials = result_of(tmp_path / "all")["trials"]
    assert [trial["head"] for trial in trials] == [0, 1, 2]


def test_the_schedule_falls_to_a_tenth_where_it_is_told() -> None:
    config = load_finetuning("linear-harl-repo")
    schedule = TuneSchedule.of(config, steps_per_epoch=10, batch_global=1024)
    rates = [schedule.lr(step) for step in (0, 599, 600, 799)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])
    sqrt = FinetuneConfig()
    schedule = TuneSchedule.of(sqrt, steps_per_epoch=10, batch_global=1024)
    assert schedule.lr_peak == pytest.approx(0.16) and schedule.total == 600


def test_a_warm_up_that_outlasts_the_steps_is_refused() -> None:
    config = FinetuneConfig(train_steps=4, warmup_epochs=0.5)
    with pytest.raises(ConfigError, match=r"warmup_epochs 0\.5 .*none of train_steps 4"):
        TuneSchedule.of(config, steps_per_epoch=8, batch_global=64)
    assert TuneSchedule.of(config, steps_per_epoch=7, batch_global=64).lr(3) > 0.0


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"flags": {"ft_proj_selector": 2}}, ConfigError, "beyond the projector, which has 1 hidden"),
    ({"flags": {"fine_tune_after_block": 5}}, ConfigError, "fine_tune_after_block.*equal to 4"),
    ({"flags": {"num_proj_layers": 3}}, ConfigError, "has 2 layers"),
    ({"flags": {"variable_schema": "(?!"}}, ConfigError, "is no regular expression"),
    ({"flags": {"variable_schema": "bakbone"}}, ConfigError, "matches no name.*'backbone'"),
    ({"flags": {"train_batch_size": 512}}, ConfigError, "fewer than one global batch"),
    ({"flags": {"learning_ratee": 1}}, ConfigError, "did you mean 'learning_rate'"),
    ({"flags": {"subset": "no/such/file.txt"}}, DataError, "no/such/file.txt"),
    ({"flags": {"subset": "99-per-class"}}, DataError, "has 25 samples"),
    ({"flags": {"head_lr_grid": (1.0, 2.0)}}, ConfigError, "hold_out is 0"),
    ({"flags": {"lr_steps": (-5.0, 20.0)}}, ConfigError, "lr_steps.*greater than 0"),
    ({"flags": {"lr_steps": (20.0, 5.0)}}, ConfigError, "ascending order"),
    ({"preset": "semi-1pc"}, ConfigError, "did you mean 'semi-1pct'"),
    ({"ckpt": None}, ConfigError, "--ckpt is missing"),
    ({"network": {"arch": "resnet50"}}, ConfigError, "has arch resnet18, .* asks for resnet50"),
    ({"network": {"width": 1.0}}, ConfigError, r"has width 0\.125, .* asks for 1\.0"),
    ({"engine": ("gradient_clipping=x",)}, ConfigError, "gradient_clipping"),
]


@pytest.mark.parametrize(("changes", "kind", "text"), REFUSALS, ids=[str(r[0]) for r in REFUSALS])
def test_refusals_come_before_anything_is_written(
    machine: Machine,
    run: Path,
    sets: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[Exception],
    text: str,
) -> None:
    with pytest.raises(kind, match=text):
        tune(tmp_path / "run", **{"ckpt": run, "data": sets, **changes})
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_data_that_cannot_serve_are_refused(machine: Machine, run: Path, tmp_path: Path) -> None:
    write_beton(tmp_path / "train.beton", plain_item, count=40)
    with pytest.raises(DataError, match=r"has no val\.beton"):
        tune(tmp_path / "run", ckpt=run, data=tmp_path)
    write_beton(tmp_path / "val.beton", lambda n: (*plain_item(n)[:2], n % 3), count=12)
    with pytest.raises(DataError, match="train has 4 classes and val 3; they differ in 'class3'"):
        tune(tmp_path / "run", ckpt=run, data=tmp_path)
    write_beton(tmp_path / "train.beton", lambda n: (*plain_item(n)[:2], 0), count=40)
    with pytest.raises(DataError, match="has one class"):
        tune(tmp_path / "run", ckpt=run, data=tmp_path)


def test_resuming_something_else_is_refused(
    machine: Machine, run: Path, tuned: Path, sets: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate 0\.05 -> 0\.5"):
        tune(tuned, ckpt=None, data=sets, resume=True, flags={"learning_rate": 0.5})
    with pytest.raises(CheckpointError, match="holds a pretraining"):
        tune(run, ckpt=None, data=sets, resume=True, preset="semi-1pct")
    with pytest.raises(CheckpointError, match=r"--run NEW_FOLDER --ckpt"):
        tune(tuned, ckpt=run, data=sets)
    other = write_sets(tmp_path / "other", train=104)
    with pytest.raises(ConfigError, match="container differs"):
        tune(tuned, ckpt=None, data=other, resume=True)


@pytest.fixture(scope="module")
def later(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_further(run, tmp_path_factory.mktemp("later") / "run")


def test_a_fine_tuning_goes_on_with_the_weights_that_it_began_with_alone(
    machine: Machine, run: Path, later: Path, tuned: Path, sets: Path, tmp_path: Path
) -> None:
    told = r"has other weights \(.* step 13\) than those that .* began with \(.* step 12\)"
    with pytest.raises(ConfigError, match=told):
        tune(tuned, ckpt=later, data=sets, resume=True)
    assert tune(tuned, ckpt=run, data=sets, resume=True) == 0
    flags = {"train_epochs": 1}
    assert tune(tmp_path / "seeds", ckpt=run, data=sets, flags=flags, seeds=2, mode="train") == 0
    with pytest.raises(ConfigError, match=told):
        tune(tmp_path / "seeds", ckpt=later, data=sets, flags=flags, seeds=3, resume=True)
    with pytest.raises(CheckpointError, match=r"give --seeds 2, or --run \.\.\./seed-0"):
        tune(tmp_path / "seeds", ckpt=run, data=sets, resume=True)
    with pytest.raises(CheckpointError, match="holds a run of one seed"):
        tune(tuned, ckpt=run, data=sets, seeds=2)
    with pytest.raises(CheckpointError, match="leave --resume and --mode eval out"):
        tune(tmp_path / "none", ckpt=run, data=sets, mode="eval")


def test_items_differ_by_class() -> None:
    first, second = tinted_item(0)[0].mean((0, 1)), tinted_item(1)[0].mean((0, 1))
    assert first.argmax() == 0 and second.argmax() == 1
