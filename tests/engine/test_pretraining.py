"""Whole runs in this process: resuming, checkpoints, stopping."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.machine import Machine
from harl_fast.engine.pretrain import pretrain
from harl_fast.engine.resume import recorded_engine, refuse_changes, settings
from harl_fast.engine.snapshot import collect_state
from harl_fast.engine.trainer import UNSAVED, RunResult, Stepper, Trainer
from harl_fast.engine.views import build_loader
from harl_fast.errors import CheckpointError, ConfigError, HarlError
from harl_fast.lock import locked
from harl_fast.runfiles import RunFolder
from tests.engine.support import (
    CPU,
    STEPS,
    FakeLoader,
    assert_rounding_alone,
    contiguous,
    distances,
    disturb_both,
    engine_config,
    prepare,
    tiny_config,
    tiny_file,
)

REFUSED = {
    "loss.extra={fgg: 2}": "loss.extra.fgg: no term of that name takes .*: none yet",
    "loss.alpha=cosine:1": "schedule 'cosine:1': two values must follow cosine",
    "loss.beta=2": "loss.beta: schedule '2': 2 is outside",
    "data.size_schedule=steps:32,x": "data.size_schedule 'steps:32,x': 'x' is no TIME:VALUE",
    "data.views.0.augment={shade: 0.5}": "augment: no operation 'shade'; known are none",
    "model.arch=resnet50x": "model.arch 'resnet50x' is none of .*; did you mean 'resnet50'",
    "model.arch=timm:../../x": "model.arch .*timm",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_a_configuration_names_is_known_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=REFUSED[setting]) as caught:
        pretrain(
            engine_file=CPU,
            config_name=str(tiny_file(tmp_path)),
            config_overrides=["model.width=1", "model.last_stride=2", setting],
            data=tmp_path / "none",  # would be missed if it were opened
            run=tmp_path / "run",
        )
    assert str(caught.value).isprintable()
    assert not (tmp_path / "run").exists()


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {
        f"{prefix}.{name}": tensor
        for prefix in ("online", "target", "optim", "scale", "ranks")
        for name, tensor in checkpoint.tensors(prefix).items()
    }


def assert_same(first: Path, second: Path) -> None:
    one, other = all_tensors(first), all_tensors(second)
    assert one.keys() == other.keys() and len(one) > 100
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def stop_at(
    run: Trainer,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int = signal.SIGTERM,
) -> None:
    """Send this process a signal in the middle of a run's step."""
    advance = Stepper.advance

    def patched(self: Stepper, *args: Any, **kwargs: Any) -> None:
        if self.step == step - 1:
            os.kill(os.getpid(), number)
        advance(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "advance", patched)


@pytest.mark.parametrize("stop", [STEPS, STEPS + 2])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    machine: Machine, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """With the real loader, at an epoch's end and within one."""
    loader = build_loader(tiny_config(tmp_path), engine_config(), machine, data=data)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    assert prepare(machine, whole, loader=loader).run() == 0

    run = prepare(machine, parts, loader=loader)
    with monkeypatch.context() as patched:
        stop_at(run, stop, patched)
        assert run.run() == 0 and run.result == RunResult(0, stop, False, "SIGTERM")
    saved = open_checkpoint(parts)
    assert (saved.record.step, saved.record.epoch_step) == (stop, stop % STEPS)
    assert prepare(machine, parts, loader=loader, checkpoint=saved).run() == 0
    assert open_checkpoint(parts).record.step == 2 * STEPS
    assert_same(whole, parts)


@pytest.mark.parametrize("loader_record", [{}, {"seed": 0, "epoch": 1, "step": 0}])
def test_a_run_from_before_order_versions_keeps_its_order_to_the_end(
    machine: Machine, tmp_path: Path, data: Path, loader_record: dict[str, int]
) -> None:
    loader = build_loader(tiny_config(tmp_path), engine_config(), machine, data=data)
    assert prepare(machine, tmp_path, loader=loader).run() == 0
    record = open_checkpoint(tmp_path).record
    assert record.loader["order_version"] == loader.order.version == 2
    old = record.model_copy(update={"loader": loader_record, "epoch": 1, "epoch_step": 0})
    loader.load_state_dict(old.position)
    later = prepare(machine, tmp_path, loader=loader)
    assert later.run() == 0
    assert open_checkpoint(tmp_path).record.loader["order_version"] == loader.order.version == 1


@pytest.mark.parametrize(
    ("before", "after", "precision"),
    [(0, 1, "fp32"), (1, 2, "fp32"), (2, 0, "fp32"), (1, 0, "fp16")],
)
def test_a_checkpoint_of_one_stage_continues_at_another(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    after: int,
    precision: str,
) -> None:
    engine = ("fp16.enabled=true",) if precision == "fp16" else ()
    run = prepare(machine, tmp_path, engine=(*engine, f"zero_optimization.stage={before}"))
    with monkeypatch.context() as patched:
        stop_at(run, 4, patched)
        run.run()
    saved = all_tensors(tmp_path)
    assert "optim.momentum_buffer.backbone.bn1.bias" in saved
    assert ("scale.factor" in saved) == (precision == "fp16")

    def resumed(stage: int) -> Trainer:
        return prepare(
            machine,
            tmp_path,
            engine=(*engine, f"zero_optimization.stage={stage}"),
            checkpoint=open_checkpoint(tmp_path),
        )

    other = resumed(after)
    restored = collect_state(other.state)
    assert restored.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(restored[name], tensor), name
    runs = [run, other, *(resumed(0) for _ in range(2))]
    disturb_both(runs[-1].state)
    for each in runs:
        contiguous(each.state)  # convolutions of other layouts round otherwise
        each.stepper.advance([FakeLoader().batch(4)], epoch=0)
    ours, theirs, plain, disturbed = (dict(each.state.harl.named_parameters()) for each in runs)
    control = distances(disturbed, plain)
    if precision == "fp16":
        # Activations are the same bits here and nothing grows; of a disturbance they would make
        # so much that momentum left out passed beside it.
        control = {name: 2.0**-23 * float(weight.norm()) for name, weight in ours.items()}
    assert_rounding_alone(distances(theirs, ours), control=control)


def test_checkpoints_and_metrics_come_when_they_should(machine: Machine, tmp_path: Path) -> None:
    config = ("epochs=3", "log.checkpoint_epochs=2", "log.every_steps=4")
    prepare(machine, tmp_path, config=config).run()
    names = sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.safetensors"))
    assert names == [f"step-{2 * STEPS:08d}", f"step-{3 * STEPS:08d}"]
    records = [json.loads(line) for line in RunFolder(tmp_path).metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == [4, 6, 8, 12, 16, 18]
    assert [record["epoch"] for record in records] == [1, 1, 2, 2, 3, 3]
    assert all(0.0 < record["loss"] < 8.0 and record["img_s"] > 0.0 for record in records)
    assert records[-1]["eta_s"] == 0.0


def test_a_finished_run_resumes_to_nothing(machine: Machine, tmp_path: Path) -> None:
    prepare(machine, tmp_path).run()
    saved = open_checkpoint(tmp_path)
    assert prepare(machine, tmp_path, checkpoint=saved).run() == 0
    assert open_checkpoint(tmp_path) == saved


def test_a_new_run_starts_from_anothers_weights(machine: Machine, tmp_path: Path) -> None:
    prepare(machine, tmp_path).run()
    saved = open_checkpoint(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    run = prepare(machine, other, weights=saved)
    assert run.stepper.step == 0
    for prefix, network in (("online", run.state.harl), ("target", run.state.harl.target)):
        for name, tensor in saved.tensors(prefix).items():
            assert torch.equal(network.state_dict()[name], tensor), name
    for others in (("model.projector_out=8",), ("loss.level=3", "loss.type=byol+f_loss")):
        with pytest.raises(CheckpointError, match="another network than this configuration"):
            prepare(machine, other, config=others, weights=saved)


def test_a_resumed_run_must_have_the_same_batch_and_container(
    machine: Machine, tmp_path: Path
) -> None:
    prepare(machine, tmp_path, config=("epochs=1",)).run()
    saved = open_checkpoint(tmp_path)
    smaller = ("train_batch_size=8", "train_micro_batch_size_per_gpu=8")
    before = settings(saved.record.config, recorded_engine(saved))
    now = settings(saved.record.config, engine_config(overrides=smaller))
    with pytest.raises(ConfigError, match="train_batch_size 16 -> 8"):
        refuse_changes(before, now, allowed=[], where="here")
    loader = FakeLoader()
    loader.manifest = type("M", (), {"beton_sha256": "1" * 64, "count": 96, "store": {}})
    with pytest.raises(ConfigError, match="not the container"):
        prepare(machine, tmp_path, loader=loader, checkpoint=saved)


def test_when_a_checkpoint_is_written_changes_nothing(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run saves after every step, the other at its end only."""
    never, often = tmp_path / "never", tmp_path / "often"
    never.mkdir(), often.mkdir()
    seldom = ("log.checkpoint_epochs=9",)
    prepare(machine, never, config=seldom).run()
    assert len(list((never / "checkpoints").glob("*.json"))) == 1
    steps: list[int] = []
    run = prepare(machine, often, config=(*seldom, "log.checkpoint_minutes=1e-9"))
    assert run._saver is not None
    save = run._saver.save

    def noted(tensors: Any, record: dict[str, Any], **more: Any) -> None:
        steps.append(record["step"])
        save(tensors, record, **more)

    monkeypatch.setattr(run._saver, "save", noted)
    run.run()
    assert steps == list(range(1, 2 * STEPS + 1))
    assert_same(never, often)


def test_a_time_limit_ends_the_run_with_a_save(machine: Machine, tmp_path: Path) -> None:
    """The process is older than the limit already: it does one step, saves and leaves."""
    run = prepare(machine, tmp_path)
    run = Trainer(run.state, run.folder, time_limit_s=1.0)
    assert run.run() == 0
    assert run.result == RunResult(code=0, step=1, done=False, reason="time limit")
    assert open_checkpoint(tmp_path).record.step == 1


def test_an_interrupt_saves_and_ends_with_130(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(machine, tmp_path)
    stop_at(run, 3, monkeypatch, number=signal.SIGINT)
    assert run.run() == 130
    assert open_checkpoint(tmp_path).record.step == 3


def test_a_stop_file_saves_and_ends_the_run(machine: Machine, tmp_path: Path) -> None:
    run = prepare(machine, tmp_path)
    (tmp_path / "stop").touch()
    assert run.run() == 0
    assert run.result == RunResult(code=0, step=1, done=False, reason="the file stop")
    assert open_checkpoint(tmp_path).record.step == 1
    ended = json.loads((tmp_path / "run.json").read_text())
    assert (ended["state"], ended["reason"]) == ("preempted", "the file stop")


def poison(monkeypatch: pytest.MonkeyPatch, *, first: int) -> None:
    """Make the loss infinite from a step on (numbered from 1)."""
    inputs = Stepper._inputs

    def broken(self: Stepper, *args: Any, **kwargs: Any) -> Any:
        views, cells = inputs(self, *args, **kwargs)
        if self.step + 1 >= first:
            views = [view.float() * float("inf") for view in views]
        return views, cells

    monkeypatch.setattr(Stepper, "_inputs", broken)


def test_a_streak_of_broken_steps_ends_the_run_and_keeps_the_checkpoint_from_before(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ("epochs=4", "log.max_skipped=9", "log.keep_last=1")
    run = prepare(machine, tmp_path, config=config)
    poison(monkeypatch, first=STEPS + 2)
    with pytest.raises(HarlError) as ended:
        run.run()
    # Steps are looked at every second one: the ninth broken one is step 16.
    assert run.stepper.step == STEPS + 2 + 8
    for words in ("9 steps in a row, from 8 on", "step-00000006", "skipped.jsonl", "--init-from"):
        assert words in str(ended.value)
    before = open_checkpoint(tmp_path / "checkpoints" / f"step-{STEPS:08d}.safetensors")
    assert all(tensor.isfinite().all() for tensor in before.tensors("online").values())
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8, 17))
    expected = [FakeLoader().batch(step - 1).ids.tolist() for step in range(8, 17)]
    assert [line["ids_by_rank"] for line in lines] == [[ids] for ids in expected]


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_in_which_no_step_had_an_effect_says_so_at_its_end(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: int,
) -> None:
    run = prepare(machine, tmp_path, config=("log.max_skipped=1000",))
    poison(monkeypatch, first=first)
    assert run.run() == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("done: ") and ("NO STEP HAD ANY EFFECT" in last) == (first == 1)


class OneStep(FakeLoader):
    steps = 1


@pytest.mark.parametrize(("epochs", "warmup", "told"), [(1, 0.5, 1), (1, 0, 0), (2, 0.5, 0)])
def test_a_run_whose_learning_rate_is_zero_at_its_only_step_is_told_so(
    machine: Machine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    epochs: int,
    warmup: float,
    told: int,
) -> None:
    config = (f"epochs={epochs}", f"optim.warmup_epochs={warmup}")
    prepare(machine, tmp_path, loader=OneStep(), config=config).run()
    assert capsys.readouterr().err.count("the learning rate is 0 all through") == told


@pytest.mark.parametrize("loss", ["deleted", "taken over"])
@pytest.mark.parametrize("step", [3, 2 * STEPS])
def test_a_run_whose_folder_is_lost_stops_and_writes_nothing(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    loss: str,
) -> None:
    folder = RunFolder(tmp_path / "run")
    parts = prepare(machine, tmp_path).state
    advance, left = Stepper.advance, json.dumps({"another": "process"})

    def patched(self: Stepper, *args: Any, **kwargs: Any) -> None:
        advance(self, *args, **kwargs)
        if self.step == step:
            shutil.rmtree(folder.path)
            if loss == "taken over":
                folder.path.mkdir()
                folder.lock.write_text(left)

    monkeypatch.setattr(Stepper, "advance", patched)
    with locked(folder.lock, output=folder.path) as lock:
        run = Trainer(parts, folder, still_held=lock.still_held)
        with pytest.raises(HarlError, match=r"run is no longer this run's.*--resume"):
            run.run()
    assert run.result is None and run.stepper.step == (STEPS if step == 3 else step)
    assert not (folder.path / "checkpoints").exists()
    if loss == "deleted":
        assert not folder.path.exists()
    assert "NOT WRITTEN" not in capsys.readouterr().err


def test_the_last_checkpoint_is_tried_twice_and_then_the_run_fails(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("in the way of the folder")
    run = prepare(machine, tmp_path, config=("epochs=1",))
    assert run.run() == UNSAVED
    assert run.stepper.step == STEPS  # training itself went on
    assert run._saver is not None and run._saver.failures == 2
    assert "ITS LAST CHECKPOINT WAS NOT WRITTEN" in capsys.readouterr().err
    about = json.loads(run.folder.status.read_text())
    why = "done, but its last checkpoint was not written"
    assert (about["state"], about["reason"]) == ("failed", why)
