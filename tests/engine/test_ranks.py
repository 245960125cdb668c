"""How launch/guard.py finds a job's ranks, and asks those to stop that it cannot find."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harl_fast.engine.ranks import FarRanks, ranks_below

TREE = r"""
import os, subprocess, sys, time
what = sys.argv[1]
below = {"launcher": ["rank", "rank"], "rank": ["helper"], "helper": []}[what]
for each in below:
    words, env = [each, sys.argv[2]], dict(os.environ)
    if each == "rank" and sys.argv[3:] == ["torchrun"]:
        env["TORCHELASTIC_RUN_ID"] = "x"
    elif each == "rank":
        words += ["--local_rank=0"]
    subprocess.Popen([sys.executable, "-c", sys.argv[2], *words], env=env)
os.write(1, f"{what} {os.getpid()}\n".encode())  # whole
time.sleep(600)
"""


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_ranks_are_known_from_what_they_start_themselves(launcher: str) -> None:
    command = [sys.executable, "-c", TREE, "launcher", TREE, launcher]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        lines = [job.stdout.readline().split() for _ in range(5)]
        expected = {int(pid) for what, pid in lines if what == "rank"}
        assert len(expected) == 2
        assert {process.pid for process in ranks_below(os.getpid())} == expected
    finally:
        for process in [*psutil.Process(job.pid).children(recursive=True), job]:
            process.kill()
        job.communicate()


def test_ranks_out_of_reach_are_asked_by_a_file_once_they_train(tmp_path: Path) -> None:
    status, stop = tmp_path / "run.json", tmp_path / "stop"
    assert not FarRanks(tmp_path).ask()  # nothing runs there
    status.write_text("of an earlier start")
    far = FarRanks(tmp_path)
    assert not far.ask() and not stop.exists()
    time.sleep(0.01)
    status.with_name("new").write_text("of this one")
    status.with_name("new").replace(status)
    assert far.ask() and stop.exists()
    stop.unlink()  # they have heard it
    assert far.ask() and not stop.exists()


def test_ranks_of_a_folder_of_seeds_are_asked_in_that_folder(tmp_path: Path) -> None:
    before = tmp_path / "seed-0" / "run.json"
    before.parent.mkdir()
    before.touch()
    far = FarRanks(tmp_path)
    assert not far.ask()
    before.unlink()
    assert not far.ask()  # a run that goes away does not train
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "run.json").touch()
    assert far.ask() and (tmp_path / "stop").exists()
