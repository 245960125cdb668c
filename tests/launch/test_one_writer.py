"""A run folder has one job at a time, however many are started."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from harl_fast.lock import FOLDER_LOCK
from tests.engine.support import BATCH, CPU, tiny_file
from tests.launch.jobs import Job, finish, run, start

JOB = Path(__file__).with_name("failing_job.py")


def arguments(folder: Path, *more: str) -> list[str | Path]:
    """Return a job that reads no container and fails nowhere."""
    own = ["--deepspeed_config", CPU, "--data", folder, "--run", folder / "run"]
    own += ["--engine-set", f"train_batch_size={BATCH}"]
    own += ["--engine-set", f"train_micro_batch_size_per_gpu={BATCH // 2}"]
    return [JOB, *own, *more, "none"]


def new(folder: Path, *, epochs: int) -> list[str | Path]:
    return arguments(folder, "--config", str(tiny_file(folder)), "--epochs", str(epochs))


def wait_for_steps(job: Job, folder: Path) -> None:
    limit = time.monotonic() + 120
    while not (folder / "run" / "metrics.jsonl").is_file() and job.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_run_that_is_going_on_cannot_be_resumed_until_it_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = start([sys.executable, *new(tmp_path, epochs=99999)], log=log)
    try:
        wait_for_steps(job, tmp_path)
        job.send_signal(signal.SIGSTOP)  # it is still there, and leaves the cores to the others
        before = (tmp_path / "run" / "provenance.json").read_bytes()
        resume = arguments(tmp_path, "--resume")
        result = run([sys.executable, *resume], log=tmp_path / "second")
        assert result.code == 2, result.text
        (line,) = result.lines("error: ")
        assert f"is in use by process {job.pid} on" in line and FOLDER_LOCK in line
        assert (tmp_path / "run" / "provenance.json").read_bytes() == before
        assert job.poll() is None
    finally:
        job.send_signal(signal.SIGKILL)
    finish(job, log=log, limit_s=30.0)
    resume = arguments(tmp_path, "--resume", "--time-limit", "0.01")  # one step, and it leaves
    result = run([sys.executable, *resume], log=tmp_path / "third")
    assert result.code == 0, result.text
    assert len(result.lines(f"taken over from process {job.pid}")) == 1
    assert not (tmp_path / "run" / FOLDER_LOCK).exists()


def test_a_refusal_reaches_all_ranks_without_a_launcher_that_ends_them(tmp_path: Path) -> None:
    job = Path(__file__).with_name("one_writer_job.py")
    result = run([sys.executable, job, tmp_path], log=tmp_path / "job.log")
    assert result.code == 0 and result.text.endswith("[2, 2]\n"), result.text
    first, second = (tmp_path / "log").read_text().strip().splitlines()[-2:]
    assert "is in use by process" in first and "rank 0 was refused its outputs" in second


@pytest.mark.slow
def test_of_two_starts_at_the_same_moment_one_goes_on(tmp_path: Path) -> None:
    """As a batch system does that starts a job of one rank once per task."""
    logs = [tmp_path / "log0", tmp_path / "log1"]
    jobs = [start([sys.executable, *new(tmp_path, epochs=60)], log=log) for log in logs]
    results = [finish(job, log=log, limit_s=150.0) for job, log in zip(jobs, logs, strict=True)]
    assert sorted(result.code for result in results) == [0, 2], [r.text for r in results]
    refused = next(result for result in results if result.code == 2)
    (line,) = refused.lines("error: ")
    assert "is in use by process" in line or "is not empty" in line  # it may be over by then
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == sorted(set(steps))
    starts = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]
    assert len(starts) == 1
