"""launch/pretrain.py under real launchers: to the end, stopped, resumed, refused, failing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import harl_fast.engine.views
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.stop import LOST
from harl_fast.program import run_main
from launch.pretrain import main
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, STEPS, tiny_file
from tests.launch.jobs import LIMIT_S, ROOT, Job, deepspeed, finish, run, start

SCRIPT = Path("launch/pretrain.py")
JOB = Path(__file__).with_name("failing_job.py")
GUARD = [sys.executable, Path("launch/guard.py")]
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
    assert "untested optimizer" in (tmp_path / "run" / "deepspeed.log").read_text()
    assert steps_of(tmp_path) == [2, 4, 6, 8, 10, 12]
    record = open_checkpoint(tmp_path / "run").record
    assert (record.step, record.epoch, record.epoch_step) == (2 * STEPS, 2, 0)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def started(tmp_path: Path, command: list[str | Path], *more: str) -> Job:
    """Start a new run and return once it trains."""
    log, metrics = tmp_path / "log", tmp_path / "run" / "metrics.jsonl"
    job = start([*command, *new_run(tmp_path), *more], log=log)
    limit = time.monotonic() + LIMIT_S
    while not metrics.is_file() and job.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    return job


def marker(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / name).read_text())
    return found


def test_a_preempted_job_ends_well_and_one_rank_finishes_the_run(
    tmp_path: Path, data: Path
) -> None:
    """The signal reaches `guard.py` alone, as from `timeout`, a container's stop, or kill."""
    log = tmp_path / "log"
    command = [*GUARD, *deepspeed(2), SCRIPT, *arguments(tmp_path, data)]
    job = started(tmp_path, command, "--epochs", "20")
    job.terminate()
    result = finish(job, log=log)
    assert result.code == 0, result.text
    saved = open_checkpoint(tmp_path / "run").record
    note = marker(tmp_path, "preempted")
    assert (note["step"], note["reason"]) == (saved.step, "SIGUSR1")
    assert not (tmp_path / "run" / "finished").exists()
    assert 0 < saved.step < 20 * STEPS and saved.ranks == 2
    assert saved.engine["train_micro_batch_size_per_gpu"] == BATCH // 2

    resume = [*arguments(tmp_path, data), *BATCH_OVERRIDE, "--resume", "--set", "data.workers=2"]
    stage = ["--engine-set", "zero_optimization.stage=2"]
    result = run([*GUARD, *deepspeed(1), SCRIPT, *resume, *stage], log=log)
    assert result.code == 0, result.text
    assert "[20" not in result.text.partition(str(tmp_path / "run"))[0]  # of DeepSpeed's
    assert result.lines(f"resuming after step {saved.step}")
    assert open_checkpoint(tmp_path / "run").record.step == 20 * STEPS
    assert not (tmp_path / "run" / "preempted").exists()
    assert marker(tmp_path, "finished")["step"] == 20 * STEPS
    starts = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]
    assert [(at["step"], at["ranks"]) for at in starts] == [(0, 2), (saved.step, 1)]
    # Two records may share the step at which the run stopped between two log lines.
    assert steps_of(tmp_path) == sorted(set(steps_of(tmp_path)))


def endless(tmp_path: Path, *, guard: Sequence[str | Path] = GUARD) -> Job:
    """Start a run of two ranks without container that would last for hours."""
    command = [*guard, *deepspeed(2), JOB, *arguments(tmp_path, tmp_path)]
    return started(tmp_path, command, "--epochs", "99999", "none")


def ranks_of(job: Job) -> list[psutil.Process]:
    below = psutil.Process(job.pid).children(recursive=True)
    return [p for p in below if any(word.startswith("--local_rank") for word in p.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to", "guarded"),
    [
        (signal.SIGTERM, "all", 0),
        (signal.SIGUSR1, "all", 0),
        (signal.SIGUSR1, "one rank", 0),
        (signal.SIGINT, "guard", 130),
        (signal.SIGHUP, "guard", 0),
        (signal.SIGHUP, "all", 0),
        (signal.SIGHUP, "one rank", 0),
    ],
)
def test_signals_as_batch_systems_send_them(
    tmp_path: Path, number: int, to: str, guarded: int
) -> None:
    job = endless(tmp_path)
    every = psutil.Process(job.pid).children(recursive=True)
    if to == "all":
        for process in [psutil.Process(job.pid), *every]:
            process.send_signal(number)
    else:
        (ranks_of(job)[1] if to == "one rank" else job).send_signal(number)
    result = finish(job, log=tmp_path / "log")
    assert result.code == guarded, result.text
    assert marker(tmp_path, "preempted")["step"] == open_checkpoint(tmp_path / "run").record.step
    assert not psutil.wait_procs(every, timeout=120)[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_a_job_that_loses_a_process_fails(tmp_path: Path, victim: str) -> None:
    """A lost rank fails the launcher; of its own lost half it says nothing, but guard.py does."""
    before = left_in_shared_memory()
    job = endless(tmp_path)
    every = psutil.Process(job.pid).children(recursive=True)
    dying = ranks_of(job)[1] if victim == "rank" else ranks_of(job)[0].parent()
    assert dying is not None
    dying.kill()
    result = finish(job, log=tmp_path / "log")
    assert result.code > 0, result.text
    assert bool(result.lines("its launcher died")) == (victim == "launcher")
    assert not (tmp_path / "run" / "finished").exists()
    assert not psutil.wait_procs(every, timeout=120)[1]
    assert left_in_shared_memory() == before


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "guarded"), [("guard", True), ("half", False), ("all", False)])
def test_ranks_save_and_leave_when_guard_or_launcher_is_killed(
    tmp_path: Path, victim: str, guarded: bool
) -> None:
    """half: the part of DeepSpeed's launcher that started the ranks. all: both parts."""
    before = left_in_shared_memory()
    job = endless(tmp_path, guard=GUARD if guarded else [])
    every = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    half = ranks_of(job)[0].parent()
    assert half is not None
    for process in {"guard": every[:1], "half": [half], "all": [every[0], half]}[victim]:
        process.kill()
    job.wait()
    assert not psutil.wait_procs(every[1:], timeout=60)[1]
    note = marker(tmp_path, "preempted")
    assert note["step"] == open_checkpoint(tmp_path / "run").record.step
    assert note["reason"].startswith(LOST) and note["reason"].endswith(" is gone")
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["state"], state["reason"]) == ("preempted", note["reason"])
    assert left_in_shared_memory() == before


@pytest.mark.slow
def test_two_interrupts_end_the_job_with_130_and_run_json_says_so(tmp_path: Path) -> None:
    job = endless(tmp_path)
    every = psutil.Process(job.pid).children(recursive=True)
    for _ in range(2):
        job.send_signal(signal.SIGINT)
        time.sleep(0.3)
    result = finish(job, log=tmp_path / "log", limit_s=60.0)
    assert result.code == 130, result.text
    assert not psutil.wait_procs(every, timeout=30)[1]
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["state"] in ("preempted", "failed") and state["reason"]


def test_a_file_for_eight_gpus_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # where a lone rank notes its place
    command = [*arguments(tmp_path, tmp_path, engine="a100x8"), "--config", "demo"]
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: main([str(part) for part in command]))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "needs 8 ranks with a CUDA device of 80 GB each" in line
    assert line.endswith("use --deepspeed_config ds_configs/cpu.json")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # torch waits a minute for the port
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


@pytest.mark.parametrize("way", ["raise", pytest.param("hang", marks=pytest.mark.slow)])
def test_a_failing_rank_fails_the_job(tmp_path: Path, data: Path, way: str) -> None:
    """Raising ends the others at once; silence does so after the time limit of collectives."""
    limit = ["--engine-set", f"harl_fast.timeout_minutes={0.25 if way == 'hang' else 5}"]
    command = [*deepspeed(2), JOB, *arguments(tmp_path, data), *new_run(tmp_path), *limit, way]
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
        (["--config", "demo"], ["train.beton", "make beton"]),
        (["--resume"], ["holds no run"]),
        (["--config", "demo", "--run", "/proc/none/run"], ["/proc/none/run cannot be written to"]),
        (["--config", "demo", "--init-from", "nowhere"], ["nowhere", "does not exist"]),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_during_the_start_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """And the folder is as good as empty: the same command starts the run."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(
        harl_fast.engine.views, "build_loader", lambda *a, **k: os.kill(os.getpid(), number)
    )
    command = [str(part) for part in (*arguments(tmp_path, tmp_path), *new_run(tmp_path))]
    for _ in range(2):
        assert main(command) == 0
        note = marker(tmp_path, "preempted")
        assert (note["step"], note["reason"]) == (0, signal.Signals(number).name)
        state = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (state["state"], state["reason"]) == ("preempted", note["reason"])


def test_a_usage_error_ends_with_code_2(tmp_path: Path) -> None:
    result = run([sys.executable, SCRIPT, "--resume"], log=tmp_path / "log")
    assert result.code == 2 and "required: --deepspeed_config" in result.text


def test_help_fits_a_screen_and_waits_for_no_heavy_import(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", SCRIPT, "--help"]
    result = run(command, log=tmp_path / "log")
    assert result.code == 0 and "| torch" not in result.text and "import time" in result.text
    result = run([sys.executable, SCRIPT, "--help"], log=tmp_path / "log")
    assert len(result.text.splitlines()) <= 50 and "--engine-set" in result.text
