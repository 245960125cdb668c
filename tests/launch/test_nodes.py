"""Two machines without a shared folder: they meet, stop, fail, and go on together.

Where namespaces may be made, each has a network and a name of its own; elsewhere both are this one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch

from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, CPU, tiny_file
from tests.launch.jobs import _RANK_VARIABLES, BIN, LIMIT_S, ROOT, Job, finish, free_port
from tests.launch.test_survival import tensors

pytestmark = pytest.mark.slow

EPOCHS = 30
NOTICE_S = 240.0
"""How long a node may take to notice that the other is gone: of the three minutes in the
engine's settings, and one for leaving."""


@dataclass
class Nodes:
    """Two machines: where each one's files are, and what enters it."""

    folders: list[Path]
    enter: list[list[str]] = field(default_factory=lambda: [[], []])
    address: str = "127.0.0.1"

    def start(self, run: str, *words: str) -> list[Job]:
        """Start a pretraining on both, as its user does: the same command line but for the rank."""
        script, port = ROOT / "launch" / "pretrain.py", free_port()
        jobs = []
        for number, folder in enumerate(self.folders):
            command = [*self.enter[number], sys.executable, ROOT / "launch" / "guard.py"]
            command += [sys.executable, BIN / "deepspeed", "--hostfile", folder / "hosts"]
            command += ["--no_ssh", f"--node_rank={number}", f"--master_addr={self.address}"]
            command += [f"--master_port={port}", script, "--deepspeed_config", CPU]
            command += ["--engine-set", f"train_batch_size={BATCH}"]
            command += ["--engine-set", "harl_fast.timeout_minutes=3"]
            command += ["--data", "data", "--run", run, *words]
            env = {name: v for name, v in os.environ.items() if name not in _RANK_VARIABLES}
            with open(folder / "log", "wb") as stream:
                jobs.append(
                    subprocess.Popen(
                        [str(word) for word in command],
                        cwd=folder,
                        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return jobs

    def begin(self, run: str) -> list[Job]:
        """Start a new run."""
        often = ("--set", "log.checkpoint_minutes=1e-9")
        config = str(tiny_file(self.folders[0].parent))
        return self.start(run, "--config", config, "--epochs", str(EPOCHS), *often)

    def end(self, jobs: list[Job], *, limit_s: float = LIMIT_S) -> list[int]:
        """Wait for both and return their exit codes."""
        logs = [folder / "log" for folder in self.folders]
        return [
            finish(job, log=log, limit_s=limit_s).code for job, log in zip(jobs, logs, strict=True)
        ]

    def told(self) -> str:
        """Return what both printed last."""
        return "\n".join((folder / "log").read_text()[-3000:] for folder in self.folders)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    folders = [tmp_path / "node0", tmp_path / "node1"]
    (tmp_path / "data").mkdir()
    write_beton(tmp_path / "data" / "train.beton", plain_item, count=100)
    for folder in folders:
        shutil.copytree(tmp_path / "data", folder / "data")
        (folder / "hosts").write_text("node0 slots=1\nnode1 slots=1\n")
    with contextlib.ExitStack() as held:
        found = Nodes(folders)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found = _apart(Nodes(folders), held)
        yield found


def _apart(nodes: Nodes, held: contextlib.ExitStack) -> Nodes:
    """Give each node a network and a name. Raises OSError or CalledProcessError."""
    pids = []
    for _ in nodes.folders:
        holder = subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"])
        held.callback(lambda holder=holder: (holder.kill(), holder.wait()))
        pids.append(holder.pid)
    own = os.readlink("/proc/self/ns/net")
    wait_for(lambda: all(os.readlink(f"/proc/{pid}/ns/net") != own for pid in pids), what="nets")

    def do(*words: object) -> None:
        subprocess.run([str(word) for word in words], check=True, capture_output=True)

    nodes.enter = [["nsenter", f"--target={pid}", "--net", "--uts"] for pid in pids]
    do(
        "ip",
        "link",
        "add",
        "hf0",
        "netns",
        pids[0],
        "type",
        "veth",
        "peer",
        "hf1",
        "netns",
        pids[1],
    )
    for number, enter in enumerate(nodes.enter):
        do(*enter, "hostname", f"node{number}")  # which /etc/hosts does not know
        do(*enter, "ip", "address", "add", f"10.77.0.{number + 1}/24", "dev", f"hf{number}")
        for link in ("lo", f"hf{number}"):
            do(*enter, "ip", "link", "set", link, "up")
    nodes.address = "10.77.0.1"
    return nodes


def wait_for(condition: Callable[[], bool], *, what: str, limit_s: float = LIMIT_S) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"{what} within {limit_s} s"
        time.sleep(0.05)


def kill_all(job: Job) -> None:
    for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_two_machines_stop_fail_and_go_on_together(nodes: Nodes) -> None:
    first, second = nodes.folders
    run, latest = first / "run", first / "run" / "checkpoints" / "latest"
    jobs = nodes.begin("run")
    wait_for(latest.exists, what="a checkpoint")
    (run / "stop").touch()
    assert nodes.end(jobs) == [0, 0], nodes.told()
    assert "stopped by the file stop" in (first / "log").read_text()
    assert (run / "preempted").is_file() and not (run / "stop").exists()
    # The other machine has nothing of the run but the marker that its guard waits for.
    assert [path.name for path in (second / "run").iterdir()] == ["preempted"]

    before = latest.read_text()
    jobs = nodes.start("run", "--resume")
    wait_for(lambda: latest.read_text() != before, what="a step after resuming")
    kill_all(jobs[1])
    assert 0 not in nodes.end(jobs, limit_s=NOTICE_S), nodes.told()
    assert "another rank is gone" in (first / "log").read_text(), nodes.told()

    assert nodes.end(nodes.start("run", "--resume")) == [0, 0], nodes.told()
    assert nodes.end(nodes.begin("whole")) == [0, 0], nodes.told()
    for name in ("run", "whole"):
        assert all((folder / name / "finished").is_file() for folder in nodes.folders)
    ours, theirs = tensors(run), tensors(first / "whole")
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
