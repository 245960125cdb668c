"""What a launcher started and what this machine has, against what an engine file was made for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from harl_fast.engine.config import Needs
from harl_fast.engine.launchers import check_choices, note_place
from harl_fast.errors import ConfigError, HarlError, shown
from harl_fast.host import usable_cores

_GRACE_S = 5.0
"""How long a rank waits for its machine's first rank to report; launchers look once a second."""

_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says in a plain RuntimeError; a GPU's has a type of its own."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3) in glibc's malloc.h."""


@dataclass(frozen=True)
class Machine:
    """One rank's place, and the devices around it."""

    rank: int = 0
    local_rank: int = 0
    ranks: int = 1
    """Processes over all machines."""
    ranks_here: int = 1
    """Processes on this machine."""
    gpus: int = 0
    """CUDA devices on this machine."""
    gpu_gb: float = 0.0
    """Memory of the smallest of them, in 10^9 bytes."""
    cores: int = 1

    @property
    def several(self) -> bool:
        """Whether the ranks are on several machines."""
        return self.ranks > self.ranks_here

    @property
    def elsewhere(self) -> bool:
        """Whether this rank may be on another machine than rank 0, and never if it is not.

        A machine's ranks are counted in their order: where the k-th has number k, all before it are
        there too, and rank 0 first. Ranks dealt out in turn may stand beside rank 0 and be
        "elsewhere" nevertheless.
        """
        return self.rank != self.local_rank

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return torch.device("cuda", self.local_rank) if self.gpus else torch.device("cpu")


def this_machine() -> Machine:
    """Return this rank's place; without a launcher it becomes the only rank.

    Sets the variables that a launcher leaves out, see `launchers.note_place`. Raises ConfigError.
    """
    note_place(os.environ)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(gpus)]
    check_choices(os.environ, device="cuda" if gpus else "cpu")
    ranks, here = _from_launcher("WORLD_SIZE", least=1), _from_launcher("LOCAL_SIZE", least=1)
    _from_launcher("MASTER_PORT", least=1, most=65_535)
    rank, local_rank = _from_launcher("RANK"), _from_launcher("LOCAL_RANK")
    if rank >= ranks or local_rank >= here:
        raise ConfigError(
            f"the environment variables RANK {rank} of WORLD_SIZE {ranks} and LOCAL_RANK "
            f"{local_rank} of LOCAL_SIZE {here} name a rank that there is not; ranks count from 0"
        )
    return Machine(
        rank=rank,
        local_rank=local_rank,
        ranks=ranks,
        ranks_here=here,
        gpus=gpus,
        gpu_gb=min(sizes, default=0) / 1e9,
        cores=usable_cores(),
    )


def _from_launcher(name: str, *, least: int = 0, most: int = 10**6) -> int:
    text = os.environ.get(name, str(least))
    if not (text.isascii() and text.isdecimal() and least <= int(text[:9]) <= most):
        raise ConfigError(
            f"the environment variable {name} is {shown(text)}, not the number from {least} to "
            f"{most} that a launcher sets; start with `deepspeed` or `torchrun`, or unset RANK"
        )
    return int(text)


def check_machine(needs: Needs, machine: Machine, *, source: str) -> None:
    """Raise ConfigError in one line if the engine file was made for another machine.

    source: the engine file's name.
    """
    per_rank = "any device"
    if needs.device == "cuda":
        size = f" of {needs.memory_gb:g} GB" if needs.memory_gb else ""
        per_rank = f"a CUDA device{size} each"
    elif needs.device == "cpu":
        per_rank = "the CPU"
    # 3 % below the name on the box: a card's memory is partly its own.
    small = machine.gpu_gb < 0.97 * needs.memory_gb
    fits_device = {
        "any": True,
        "cpu": machine.gpus == 0,
        "cuda": machine.gpus >= machine.ranks_here and not small,
    }[needs.device]
    if fits_device and needs.ranks in (None, machine.ranks):
        return
    has = f"{machine.gpus} CUDA device{'s' * (machine.gpus != 1)}"
    has += f" of {machine.gpu_gb:.0f} GB" if machine.gpus else f" and {machine.cores} CPU cores"
    wanted = f"{needs.ranks} ranks" if needs.ranks else "ranks"
    started = f"{machine.ranks} rank{'s' * (machine.ranks != 1)}"
    remedy = f"use --deepspeed_config {needs.instead}"
    if needs.ranks and machine.gpus >= needs.ranks and not small:
        remedy = f"start it with deepspeed --num_gpus {needs.ranks} launch/pretrain.py ..."
    raise ConfigError(
        f"{source} needs {wanted} with {per_rank}; this machine has {has}, and {started} "
        f"{'was' if machine.ranks == 1 else 'were'} started: {remedy}"
    )


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that a step frees for the next; return whether it does.

    glibc returns large blocks to the kernel, which clears each page of them when it is asked
    again: 18,000 to 50,000 page faults per step of a ResNet-18 on 64 px views, 3 % of its time. The
    process stays as large as it ever was instead. Left alone are other C libraries, and where the
    environment says how memory is to be had.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Older versions take no more than 32 MB.
    apart = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(apart and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


@contextlib.contextmanager
def leader_reports(machine: Machine) -> Iterator[None]:
    """Let an error that all ranks of a machine meet alike be reported by the first of them.

    The others hold theirs back: the launcher ends them as soon as the first rank is gone. A rank
    that is still there after the wait has an error of its own and reports it.
    """
    try:
        with needing_all_ranks(machine):
            yield
    except (HarlError, OSError):
        if machine.local_rank > 0:
            time.sleep(_GRACE_S)
        raise


@contextlib.contextmanager
def needing_all_ranks(machine: Machine) -> Iterator[None]:
    """Turn what torch raises in a collective that another rank has left into one line.

    And what it raises where memory does not suffice, or its compiler cannot write.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY in reason:
            raise HarlError(
                f"rank {machine.rank}: the memory of {machine.device} does not suffice "
                f"({reason[:160]}). Use a smaller train_micro_batch_size_per_gpu (--engine-set; in "
                f"lineval --batch), smaller views, or a smaller network"
            ) from error
        from harl_fast.engine.compilation import compiler_failure  # with the model's modules

        if text := compiler_failure(error):
            raise HarlError(text) from error
        lost = isinstance(error, dist.DistError) or "gloo/" in str(error)
        if machine.ranks == 1 or not lost:
            raise
        raise HarlError(
            f"rank {machine.rank} of {machine.ranks} cannot go on: another rank is gone or does "
            f"not answer ({reason[:120]}). Look above for why it ended, or "
            f"in `dmesg` if it was killed (out of memory?), then start again, a training with "
            f"--resume"
        ) from error
