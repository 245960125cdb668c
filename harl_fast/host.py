"""The resources that this process may use on its machine, and the time there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO, _CPUINFO = Path("/proc/meminfo"), Path("/proc/cpuinfo")
CACHE_SHARE = 0.8
"""Share of the available memory that a container may take: training needs some as well."""


def usable_cores() -> int:
    """Return how many cores this process may use: those it may run on, or a container's quota."""
    return min(_bound_cores(), _cpu_quota())


def _bound_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota() -> int:
    """Return how many cores' time a container (cgroup v2 or v1) is allowed, rounded up.

    `docker run --cpus=2` and Kubernetes' limits set it; all cores can be seen there all the same.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            quota, period = map(int, " ".join((_CGROUP / n).read_text() for n in names).split())
            if quota > 0 and period > 0:  # -1 in v1: no limit
                return -(-quota // period)
    return sys.maxsize


def owned_cores(ranks_here: int) -> int:
    """Return how many cores are this process's own, beside the other ranks of this machine.

    Ranks that their launcher has bound to cores (`deepspeed --bind_cores_to_rank`, `numactl`,
    `srun --cpu-bind`) own those, others an even part of the launcher's, which is taken to be the
    process that started this one. They share a container's quota.
    """
    own = launcher = _bound_cores()
    if ranks_here > 1 and hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):  # it may be gone, or out of sight of a container
            launcher = max(own, len(os.sched_getaffinity(os.getppid())))
    return max(1, min(own, min(launcher, _cpu_quota()) // ranks_here))


def has_gpu_driver() -> bool:
    """Return whether torch might find a GPU; without CUDA's or ROCm's driver it cannot.

    A cheap question: torch itself takes seconds to import.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def available_bytes() -> int | None:
    """Return how much main memory this process may still take, or None where nobody says.

    The kernel's estimate (MemAvailable), or less if a container (cgroup v2) is allowed less; there
    too, pages of files count as available, since the kernel takes them back when it must.
    """
    found = []
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            cache = _statistic("inactive_file") + _statistic("active_file")
            used = int((_CGROUP / "memory.current").read_text())
            found.append(max(0, int(limit) - used + cache))
    except (OSError, ValueError):
        pass  # no container, or an older kind of it
    return min(found, default=None)


def _statistic(name: str) -> int:
    for line in (_CGROUP / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def cpu() -> tuple[str, set[str]]:
    """Return the processor's name and its instruction sets as Linux calls them, as far as told."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", set()
    said = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text, re.MULTILINE))
    return said.get("model name", ""), set(said.get("flags", "").split())


def utc_time(seconds: float | None = None) -> str:
    """Return a Unix time, by default now, in UTC to the second, in ISO 8601."""
    when = time.time() if seconds is None else seconds
    return datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="seconds")
