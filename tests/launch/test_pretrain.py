"""launch/pretrain.py under real launchers: to the end, stopped, resumed, refused, failing."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from harl_fast.engine.checkpoint import open_checkpoint
from harl_fast.errors import run_main
from launch.pretrain import main
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, STEPS, tiny_file
from tests.launch.jobs import ROOT, Result, deepspeed, finish, run, start

SCRIPT = Path("launch/pretrain.py")
BATCH_OVERRIDE = ["--engine-set", f"train_batch_size={BATCH}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_beton(folder / "train.beton", plain_item, count=100)
    return folder


def arguments(tmp_path: Path, data: Path, *, engine: str = "cpu") -> list[str | Path]:
    file = ROOT / "ds_configs" / f"{engine}.json"
    return ["--deepspeed_config", file, "--data", data, "--run", tmp_path / "run"]


def new_run(tmp_path: Path) -> list[str | Path]:
    return [*BATCH_OVERRIDE, "--config", tiny_file(tmp_path)]


def left_in_shared_memory() -> list[Path]:
    return list(Path("/dev/shm").glob("deepspeed_*"))


def steps_of(tmp_path: Path) -> list[int]:
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_two_ranks_train_to_the_end_and_leave_nothing(tmp_path: Path, data: Path) -> None:
    before = left_in_shared_memory()
    command = [*deepspeed(2), SCRIPT, *arguments(tmp_path, data), *new_run(tmp_path)]
    result = run(command, log=tmp_path / "log")
    assert result.code == 0, result.text
    assert left_in_shared_memory() == before
    assert len(result.lines("global batch 16 = micro batch 8 x accumulation 1 x 2 ranks")) == 1
    assert len(result.lines("epoch 1/2 step 2  loss ")) == 1  # rank 0 alone speaks
    assert len(result.lines("done: 2 epochs")) == 1
    assert result.lines("untested optimizer") == result.lines("built successfully") == []
    assert steps_of(tmp_path) == [2, 4, 6, 8, 10, 12]
    record = open_checkpoint(tmp_path / "run").record
    assert (record.step, record.epoch, record.epoch_step) == (2 * STEPS, 2, 0)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def stopped(tmp_path: Path, data: Path) -> Result:
    """Start two ranks, and send all processes of the job a SIGTERM once they train."""
    log = tmp_path / "log"
    command = [*deepspeed(2), SCRIPT, *arguments(tmp_path, data), *new_run(tmp_path)]
    job = start([*command, "--epochs", "20"], log=log)
    metrics, limit = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not metrics.is_file() and job.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    for process in psutil.Process(job.pid).children(recursive=True):
        process.terminate()  # the launcher answers with one more SIGTERM to each rank
    return finish(job, log=log, limit_s=90.0)


def test_a_signal_stops_all_ranks_and_one_rank_finishes_the_run(tmp_path: Path, data: Path) -> None:
    result = stopped(tmp_path, data)
    assert result.code != 0
    assert len(result.lines("stopped by SIGTERM at step")) == 1, result.text
    saved = open_checkpoint(tmp_path / "run").record
    assert 0 < saved.step < 20 * STEPS
    assert saved.engine["train_micro_batch_size_per_gpu"] == BATCH // 2

    resume = [*arguments(tmp_path, data), *BATCH_OVERRIDE, "--resume", "--set", "data.workers=2"]
    stage = ["--engine-set", "zero_optimization.stage=2"]
    result = run([*deepspeed(1), SCRIPT, *resume, *stage], log=tmp_path / "log")
    assert result.code == 0, result.text
    assert result.lines(f"resuming after step {saved.step}")
    assert open_checkpoint(tmp_path / "run").record.step == 20 * STEPS
    # Two records may share the step at which the run stopped between two log lines.
    assert steps_of(tmp_path) == sorted(set(steps_of(tmp_path)))


def test_a_file_for_eight_gpus_is_refused_in_one_line(tmp_path: Path, data: Path) -> None:
    result = run(
        [*deepspeed(2), SCRIPT, *arguments(tmp_path, data, engine="a100x8"), "--config", "demo"],
        log=tmp_path / "log",
    )
    assert result.code == 2
    (line,) = result.lines("error: ")
    assert "needs 8 ranks with a CUDA device of 80 GB each" in line
    assert line.endswith("use --deepspeed_config ds_configs/cpu.json")
    assert not (tmp_path / "run").exists()


def test_two_ranks_that_find_their_port_taken_say_what_to_do(tmp_path: Path, data: Path) -> None:
    command = [*deepspeed(2), SCRIPT, *arguments(tmp_path, data), *new_run(tmp_path)]
    with socket.socket() as other_job:
        port = next(part for part in command if str(part).startswith("--master_port="))
        other_job.bind(("0.0.0.0", int(str(port).partition("=")[2])))
        other_job.listen()
        result = run(command, log=tmp_path / "log")
    assert result.code == 2, result.text
    (line,) = result.lines("error: ")
    assert "deepspeed --master_port" in line


@pytest.mark.parametrize("way", ["raise", "hang"])
def test_a_failing_rank_fails_the_job(tmp_path: Path, data: Path, way: str) -> None:
    """Raising ends the others at once; silence does so after the time limit of collectives."""
    job = Path(__file__).with_name("failing_job.py")
    limit = ["--engine-set", f"harl_fast.timeout_minutes={0.25 if way == 'hang' else 5}"]
    command = [*deepspeed(2), job, *arguments(tmp_path, data), *new_run(tmp_path), *limit, way]
    result = run(command, log=tmp_path / "log")
    assert result.code > 0, result.text
    assert result.lines("done: ") == []
    assert bool(result.lines("RuntimeError: sabotage")) == (way == "raise")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--config", "demoo"], ["'demoo'", "did you mean 'demo'"]),
        (["--config", "demo", "--set", "optim.lrr=3"], ["optim.lrr", "'lr'"]),
        (["--config", "demo", "--engine-set", "zero_optimization.stage=3"], ["stage 3"]),
        (["--config", "demo", "--engine-set", "train_batch_size=0"], ["train_batch_size"]),
        (["--config", "demo"], ["train.json", "make beton"]),
        (["--resume"], ["holds no run"]),
        (["--config", "demo", "--init-from", "nowhere"], ["nowhere", "holds no checkpoint"]),
    ],
)
def test_mistakes_end_with_code_2_and_one_message(
    tmp_path: Path,
    more: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # where a lone rank notes its place
    command = [str(part) for part in (*arguments(tmp_path, tmp_path), *more)]
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: main(command))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


def test_a_usage_error_ends_with_code_2(tmp_path: Path) -> None:
    result = run([sys.executable, SCRIPT, "--resume"], log=tmp_path / "log", limit_s=30.0)
    assert result.code == 2 and "required: --deepspeed_config" in result.text


def test_help_fits_a_screen_and_waits_for_no_heavy_import(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", SCRIPT, "--help"]
    result = run(command, log=tmp_path / "log", limit_s=60)
    assert result.code == 0 and "| torch" not in result.text and "import time" in result.text
    result = run([sys.executable, SCRIPT, "--help"], log=tmp_path / "log", limit_s=60)
    assert len(result.text.splitlines()) <= 50 and "--engine-set" in result.text
