"""What a rank learns from its launcher, and the one line about a machine that does not fit."""

from __future__ import annotations

import errno
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harl_fast.engine import machine as module
from harl_fast.engine.config import Needs
from harl_fast.engine.machine import (
    Machine,
    check_machine,
    leader_reports,
    needing_all_ranks,
    this_machine,
)
from harl_fast.errors import ConfigError, HarlError

EIGHT = Needs(ranks=8, device="cuda", memory_gb=80)


def message(needs: Needs, here: Machine) -> str:
    with pytest.raises(ConfigError) as caught:
        check_machine(needs, here, source="a100x8.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_laptop_is_told_what_is_needed_what_it_has_and_what_to_use() -> None:
    text = message(EIGHT, Machine(cores=2))
    assert text == (
        "a100x8.json needs 8 ranks with a CUDA device of 80 GB each; this machine has 0 CUDA "
        "devices and 2 CPU cores, and 1 rank was started: use --deepspeed_config "
        "ds_configs/cpu.json"
    )


def test_a_fitting_machine_that_was_started_wrongly_is_told_the_command() -> None:
    text = message(EIGHT, Machine(gpus=8, gpu_gb=85.0))
    assert "8 CUDA devices of 85 GB" in text
    assert text.endswith("start it with deepspeed --num_gpus 8 launch/pretrain.py ...")


def test_small_cards_do_not_fit() -> None:
    text = message(EIGHT, Machine(ranks=8, ranks_here=8, gpus=8, gpu_gb=42.4))
    assert "of 42 GB" in text and "ds_configs/cpu.json" in text


@pytest.mark.parametrize(
    ("needs", "here"),
    [
        (EIGHT, Machine(ranks=8, ranks_here=8, gpus=8, gpu_gb=79.1)),
        (Needs(), Machine()),
        (Needs(), Machine(gpus=1, gpu_gb=10.0)),
        (Needs(ranks=2), Machine(ranks=2, ranks_here=2)),
        (Needs(device="cpu"), Machine()),
        (Needs(ranks=16, device="cuda"), Machine(ranks=16, ranks_here=8, gpus=8, gpu_gb=80.0)),
    ],
)
def test_fitting_machines_pass(needs: Needs, here: Machine) -> None:
    check_machine(needs, here, source="x.json")


def test_ranks_beside_rank_0_are_not_taken_for_others_machines() -> None:
    """Whatever way the ranks of machines were dealt out, and rank 0's always is its own."""
    for machines in ([0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]):
        for rank, where in enumerate(machines):
            local_rank = machines[:rank].count(where)
            there = Machine(rank=rank, local_rank=local_rank, ranks=4, ranks_here=2)
            if where != machines[0]:
                assert there.elsewhere
            elif machines[: rank + 1] == [where] * (rank + 1):
                assert not there.elsewhere


def test_the_only_rank_takes_a_free_port_but_under_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as other_job:
        other_job.bind(("127.0.0.1", 0))
        taken = str(other_job.getsockname()[1])
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setenv("MASTER_PORT", taken)
        this_machine()
        assert os.environ["MASTER_PORT"] != taken
        monkeypatch.setenv("MASTER_PORT", taken)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        this_machine()
        assert os.environ["MASTER_PORT"] == taken


def test_followers_wait_before_they_report(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("harl_fast.engine.machine.time.sleep", slept.append)
    for local_rank, expected in ((0, []), (1, [module._GRACE_S])):
        with pytest.raises(ConfigError), leader_reports(Machine(local_rank=local_rank)):
            raise ConfigError("x")
        assert slept == expected


def test_the_device_is_the_cpu_without_gpus() -> None:
    assert Machine().device == torch.device("cpu")
    assert Machine(gpus=4, local_rank=3).device == torch.device("cuda", 3)


FAULTS = """
import resource, torch
from harl_fast.engine.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), keep_freed_memory(), min(faults() for _ in range(6)))
"""


NAME, _, VERSION = " ".join(platform.libc_ver()).partition(" ")


@pytest.mark.skipif(
    NAME != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35),
    reason="other C libraries have no such setting, older glibc none for blocks of 128 MB",
)
@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_used_again_without_new_pages(own: bool) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUN"))}
    if own:
        env["MALLOC_ARENA_MAX"] = "4"  # somebody has chosen
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    before, kept, after = done.stdout.split()
    assert kept == str(not own)
    if own:
        assert int(after) > int(before) / 2
    else:
        # 5 blocks of 128 MB, which glibc maps and unmaps each by itself by default.
        assert int(after) < 100 < int(before)


LOGGING = """
import sys
from pathlib import Path
from harl_fast.engine import deepspeed as ds

ds._log_to(Path(sys.argv[1]))
for level in ("info", "warning", "error"):
    getattr(ds.ds_logger, level)(f"a line of level {level}")
"""


def test_deepspeeds_lines_go_to_a_file_and_errors_to_the_terminal_too(tmp_path: Path) -> None:
    levels = ("info", "warning", "error")

    def told(log: Path) -> tuple[list[str], list[str]]:
        command = [sys.executable, "-c", LOGGING, str(log)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return tuple(  # type: ignore[return-value]
            [level for level in levels if f"a line of level {level}" in text]
            for text in (result.stdout, result.stderr)
        )

    log = tmp_path / "deepspeed.log"
    assert told(log) == (["error"], [])
    assert [line.split()[-1] for line in log.read_text().splitlines()][-3:] == list(levels)
    # What cannot be written is not lost.
    assert told(tmp_path / "none" / "deepspeed.log") == (["error"], list(levels))


LOST_PEER = """
import datetime, os, sys
import torch, torch.distributed as dist
from harl_fast.engine.machine import Machine, needing_all_ranks
from harl_fast.program import run_main
rank = int(sys.argv[1])
def main():
    dist.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), 9)
    with needing_all_ranks(Machine(rank=rank, ranks=2)):
        while True:
            dist.all_reduce(torch.zeros(1000))
run_main(main)
"""


def test_a_rank_that_is_killed_is_told_by_the_others_in_one_line(tmp_path: Path) -> None:
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", LOST_PEER, str(rank), str(tmp_path / "meeting")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [job.communicate(timeout=120)[1] for job in jobs]
    # Threads of gloo, which saw the same, may abort while the process ends.
    assert jobs[0].returncode in (2, -signal.SIGABRT), printed
    (line,) = (line for line in printed[0].splitlines() if line.startswith("error: "))
    assert "rank 0 of 2 cannot go on: another rank is gone" in line
    assert "start again, a training with --resume" in line
    assert "Traceback" not in printed[0]


def test_other_errors_and_those_of_a_single_rank_stay_what_they_are() -> None:
    for ranks, text in ((2, "out of memory"), (1, "gloo/transport/tcp/pair.cc:1: closed")):
        told = pytest.raises(RuntimeError, match=text)
        with told, needing_all_ranks(Machine(ranks=ranks)):
            raise RuntimeError(text)


class FailedCompiler(RuntimeError):
    """As torch's, around what went wrong within."""

    def __init__(self, inner: Exception) -> None:
        super().__init__(f"{type(inner).__name__}: {inner}")
        self.inner_exception = inner


class FailedCommand(RuntimeError):
    output = (
        "x.h:1: warning: no\n<built-in>: fatal error: when writing a.i: No space left on device"
    )


@pytest.mark.parametrize(
    "inner",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        FailedCommand("C++ compile error"),
        RuntimeError("in a subprocess:\nOSError: [Errno 28] No space left on device: '/x'\n"),
    ],
)
def test_a_compiler_that_cannot_write_is_one_line_with_its_places(
    inner: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(HarlError) as caught, needing_all_ranks(Machine()):
        raise FailedCompiler(inner)
    text = str(caught.value)
    assert "\n" not in text and "No space left on device" in text
    assert f"{tmp_path} (" in text and "MB free" in text and "model.compile=false" in text


def test_other_errors_of_a_compiler_stay_what_they_are() -> None:
    with pytest.raises(FailedCompiler), needing_all_ranks(Machine()):
        raise FailedCompiler(RuntimeError("missing lowering"))
