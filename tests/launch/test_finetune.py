"""launch/finetune.py under real launchers: two ranks, a stop and its resumption, pasted flags."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harl_fast.engine.checkpoint.format import open_checkpoint, write_checkpoint
from harl_fast.engine.networks import build_model
from tests.engine.support import engine_config, tiny_config
from tests.engine.tuning import result_of, saved, write_sets
from tests.launch.jobs import LIMIT_S, ROOT, Job, deepspeed, finish, run, start, torchrun

SCRIPT = Path("launch/finetune.py")
JOB = Path(__file__).with_name("tune_job.py")
GUARD = [sys.executable, Path("launch/guard.py")]
PASTED = [
    *("--mode=train_then_eval", "--train_mode=finetune", "--fine_tune_after_block=3"),
    *("--zero_init_logits_layer=True", "--global_bn=True", "--optimizer=momentum"),
    r"--variable_schema=(?!global_step|(?:.*/|^)Momentum|head_supervised)",
    *("--ft_proj_selector=1", "--learning_rate=0.1", "--weight_decay=0.0", "--train_batch_size=16"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets") / "colours")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with a fresh network's checkpoint."""
    folder = tmp_path_factory.mktemp("ckpt")
    config = tiny_config(folder)
    harl = build_model(config)
    tensors = {f"online.{name}": t for name, t in harl.state_dict().items()}
    record = {"step": 1, "epoch": 0, "epoch_step": 1, "config": config, "data": {}}
    record["engine"] = engine_config().record()
    (folder / "checkpoints").mkdir()
    write_checkpoint(folder / "checkpoints", tensors=tensors, record=record)
    return folder


def arguments(ckpt: Path, sets: Path, out: Path) -> list[str | Path]:
    engine = ROOT / "ds_configs" / "cpu.json"
    often = ["--set", "log.every_steps=2"]
    return ["--deepspeed_config", engine, "--ckpt", ckpt, "--data", sets, "--run", out, *often]


def test_two_ranks_take_pasted_flags_and_leave_one_result(
    tmp_path: Path, ckpt: Path, sets: Path
) -> None:
    command = [*deepspeed(2), SCRIPT, *arguments(ckpt, sets, tmp_path / "run"), *PASTED]
    result = run([*GUARD, *command, "--train_epochs=2"], log=tmp_path / "log")
    assert result.code == 0, result.text
    assert len(result.lines("120/120 tensors")) == 1
    assert len(result.lines("head_contrastive 8 loaded, 0 excluded")) == 1
    assert len(result.lines("global batch 16 = micro batch 8 x accumulation 1 x 2 ranks")) == 1
    found = result_of(tmp_path / "run")
    assert found["metrics"]["top1"]["value"] > 40.0 and found["data"]["val_count"] == 40
    assert open_checkpoint(tmp_path / "run").record.ranks == 2


def begin(command: list[str | Path], *, until: Callable[[], bool], log: Path) -> Job:
    """Start a job and return it when something has come true, or it has ended."""
    job, limit = start(command, log=log), time.monotonic() + LIMIT_S
    while not until() and job.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    return job


def ranks_of(job: Job) -> list[psutil.Process]:
    """Return the processes that train, not their launchers."""
    below = psutil.Process(job.pid).children(recursive=True)
    return [each for each in below if any("--local_rank" in word for word in each.cmdline())]


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_end_at_the_same_bits(
    tmp_path: Path, ckpt: Path, sets: Path
) -> None:
    length = ["--train_epochs=6"]
    whole = [*deepspeed(2), SCRIPT, *arguments(ckpt, sets, tmp_path / "whole"), *PASTED, *length]
    assert run([*GUARD, *whole], log=tmp_path / "log").code == 0
    parts = [*deepspeed(2), SCRIPT, *arguments(ckpt, sets, tmp_path / "parts"), *PASTED, *length]
    parts += ["--set", "log.checkpoint_epochs=1"]
    metrics = tmp_path / "parts" / "metrics.jsonl"
    latest = tmp_path / "parts" / "checkpoints" / "latest"
    job = begin([*GUARD, *parts], until=metrics.is_file, log=tmp_path / "log")
    job.terminate()
    result = finish(job, log=tmp_path / "log")
    assert result.code == 0, result.text
    step = open_checkpoint(tmp_path / "parts").record.step
    if step < 36:  # a slow look may have come too late
        assert json.loads((tmp_path / "parts" / "preempted").read_text())["step"] == step
    first = latest.read_text()
    resumed = [*GUARD, *parts, "--resume"]
    job = begin(resumed, until=lambda: latest.read_text() != first, log=tmp_path / "log")
    ranks = ranks_of(job)
    for rank in ranks:
        rank.kill()
    result = finish(job, log=tmp_path / "log")
    assert len(ranks) == 2 and result.code != 0, result.text
    assert step < open_checkpoint(tmp_path / "parts").record.step < 36
    assert not (tmp_path / "parts" / "finished").exists()
    again = run(resumed, log=tmp_path / "log")
    assert again.code == 0, again.text
    wanted, found = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), name
    assert result_of(tmp_path / "whole")["metrics"] == result_of(tmp_path / "parts")["metrics"]


@pytest.mark.slow
def test_seeds_follow_each_other_on_two_ranks(tmp_path: Path, ckpt: Path, sets: Path) -> None:
    command = [*deepspeed(2), SCRIPT, *arguments(ckpt, sets, tmp_path / "run"), *PASTED]
    result = run([*GUARD, *command, "--train_epochs=1", "--seeds=2"], log=tmp_path / "log")
    assert result.code == 0, result.text
    table = json.loads((tmp_path / "run" / "seeds.json").read_text())
    assert table["seeds"] == [0, 1] and (tmp_path / "run" / "finished").is_file()
    for seed, top1 in zip((0, 1), table["metrics"]["top1"], strict=True):
        folder = tmp_path / "run" / f"seed-{seed}"
        assert open_checkpoint(folder).record.ranks == 2 and (folder / "finished").is_file()
        assert result_of(folder)["metrics"]["top1"]["value"] == top1


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    found = load_file(folder / f"{name}.safetensors")
    return {key: tensor for key, tensor in found.items() if "num_batches" not in key}


@pytest.mark.slow
@pytest.mark.parametrize(("boundary", "stage"), [(-1, 1), (0, 2), (4, 1)])
def test_two_ranks_are_one_rank(tmp_path: Path, boundary: int, stage: int) -> None:
    """Weights and running statistics after 20 steps; without shared statistics they are others."""
    jobs = [("one", [sys.executable], 1), ("two", torchrun(2), 1), ("apart", torchrun(2), 0)]
    for name, command, shared in jobs:
        log = tmp_path / name
        result = run([*command, JOB, tmp_path, boundary, stage, shared, name], log=log)
        assert result.code == 0, result.text
    one, two, apart = (weights(tmp_path, name) for name, _, _ in jobs)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    worst = max(float((apart[name] - tensor).abs().max()) for name, tensor in one.items())
    assert (worst > 1e-3) is (boundary != 4)


def test_refusals_take_one_line(tmp_path: Path, ckpt: Path, sets: Path) -> None:
    plain = [sys.executable, SCRIPT, *arguments(ckpt, sets, tmp_path / "run")]
    for words, text in (
        (["--use_tpu=False"], "'--use_tpu=False': there are no TPUs here, --deepspeed_config says"),
        (["--resnet_depth=50"], "has arch resnet18, the command line asks for resnet50"),
        (["--ft_proj_selector=5"], "beyond the projector"),
        (["--subset=1-per-klass"], "1-per-klass"),
    ):
        result = run([*plain, *PASTED, *words], log=tmp_path / "log")
        assert result.code == 2, result.text
        errors = [line for line in result.text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and text in errors[0], result.text
    assert not (tmp_path / "run" / "config.yaml").exists()
