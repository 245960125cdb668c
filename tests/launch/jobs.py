"""Real launchers in subprocesses, with time limits that end the whole job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_RANK_VARIABLES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}
"""Set in this process by tests that run one rank in it; a job's launcher sets its own."""

# Limits end jobs that hang; they say nothing about speed. Jobs of seconds may take minutes beside
# others and where code has to be compiled first.
LIMIT_S = 600.0
LONG_S = 1500.0
"""For jobs of a minute."""

Job: TypeAlias = "subprocess.Popen[bytes]"


@dataclass(frozen=True)
class Result:
    """How a job ended, and what it printed."""

    code: int
    text: str

    def lines(self, word: str) -> list[str]:
        """Return the printed lines that contain a word."""
        return [line for line in self.text.splitlines() if word in line]


def deepspeed(ranks: int) -> list[str]:
    """Return the start of a command line under DeepSpeed's launcher."""
    # A port of its own: another job on this machine may hold the default one.
    return [
        sys.executable,
        str(BIN / "deepspeed"),
        "--log_level=error",
        f"--num_accelerators={ranks}",
        f"--master_port={free_port()}",
    ]


def torchrun(ranks: int) -> list[str]:
    """Return the start of a command line under torchrun."""
    port = f"--master-port={free_port()}"
    return [str(BIN / "torchrun"), f"--nproc-per-node={ranks}", port]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(command: Sequence[str | Path], *, log: Path) -> Job:
    """Start a job in a process group of its own; it prints into ``log``."""
    env = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as stream:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=env,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(job: Job, *, log: Path, limit_s: float = LIMIT_S) -> Result:
    """Wait for a job and return its result; past the limit it is killed and the test fails."""
    try:
        code = job.wait(limit_s)
    except subprocess.TimeoutExpired:
        for process in [*psutil.Process(job.pid).children(recursive=True), job]:
            process.kill()
        text = log.read_text(errors="replace")[-4000:]
        raise AssertionError(f"still running after {limit_s} s:\n{text}") from None
    return Result(code, log.read_text(errors="replace"))


def run(command: Sequence[str | Path], *, log: Path, limit_s: float = LIMIT_S) -> Result:
    """Run a job to its end."""
    return finish(start(command, log=log), log=log, limit_s=limit_s)
