"""Slurm starts one run of several ranks; it saves before its time is over, and is queued again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, CPU, tiny_file
from tests.launch.jobs import ROOT, finish, start
from tests.launch.test_nodes import wait_for

JOB = Path(__file__).with_name("srun_job.py")
SRUN = """\
#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$PYTHON" "$JOB" "$@"
"""
SCONTROL = """\
#!/bin/sh
echo "$@" > "$RUN.asked"
"""


@pytest.mark.slow
def test_a_job_saves_before_its_time_is_over_and_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through launch/slurm.sbatch and the guard, whose signals srun keeps to itself."""
    write_beton(tmp_path / "train.beton", plain_item, count=100)
    run, log, tools = tmp_path / "run", tmp_path / "log", tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    given = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": sys.executable, "JOB": str(JOB)}
    given |= {"RUN": str(run), "DS_CONFIG": str(CPU), "SLURM_JOB_ID": "4711"}
    for name, value in (given | {"SLURM_CPUS_PER_TASK": "1"}).items():
        monkeypatch.setenv(name, value)
    command = ["bash", ROOT / "launch" / "slurm.sbatch", "--config", tiny_file(tmp_path)]
    command += ["--engine-set", f"train_batch_size={BATCH}", "--epochs", "1000"]
    job = start([*command, "--data", tmp_path], log=log)
    wait_for((run / "metrics.jsonl").exists, what="steps")
    job.send_signal(signal.SIGUSR1)
    result = finish(job, log=log)
    assert result.code == 0, result.text
    assert json.loads((run / "preempted").read_text())["reason"] == "the file stop"
    assert not (run / "stop").exists()
    assert json.loads((run / "provenance.json").read_text())["starts"][0]["ranks"] == 2
    assert (tmp_path / "run.asked").read_text().split() == ["requeue", "4711"]


def test_the_batch_script_is_one_for_bash() -> None:
    subprocess.run(["bash", "-n", ROOT / "launch" / "slurm.sbatch"], check=True)
