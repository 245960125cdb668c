"""What a process may use of its machine: cores of a rank, and whether a GPU may be there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harl_fast import host
from harl_fast.host import has_gpu_driver, owned_cores, usable_cores


@pytest.mark.parametrize(
    ("own", "launcher", "ranks", "expected"),
    [
        (128, 128, 8, 16),  # bound to nothing
        (16, 128, 8, 16),  # by --bind_cores_to_rank: not an eighth of it
        (4, 128, 8, 4),  # to a few, by --bind_core_list
        (64, 128, 8, 16),  # four ranks to the cores of one NUMA node
        (16, 16, 8, 2),  # a container of 16 cores
        (3, 3, 8, 1),
        (128, 128, 1, 128),
        (8, 2, 2, 4),  # a launcher on fewer cores than its ranks
        (16, None, 8, 2),  # a launcher that cannot be seen
    ],
)
def test_cores_are_divided_unless_they_are_a_share(
    monkeypatch: pytest.MonkeyPatch, own: int, launcher: int | None, ranks: int, expected: int
) -> None:
    def affinity(process: int) -> set[int]:
        assert process in (0, os.getppid())
        if process and launcher is None:
            raise ProcessLookupError
        return set(range(own if not process else launcher or 0))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    monkeypatch.setattr(host, "_CGROUP", Path("/nowhere"))
    assert owned_cores(ranks) == expected


@pytest.mark.parametrize(
    ("files", "cores", "each_of_8"),
    [
        ({"cpu.max": "200000 100000\n"}, 2, 1),  # docker run --cpus=2
        ({"cpu.max": "1650000 100000\n"}, 17, 2),
        ({"cpu.max": "50000 100000\n"}, 1, 1),
        ({"cpu.max": "max 100000\n"}, 64, 8),
        ({"cpu.max": "9900000 100000\n"}, 64, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64, 8),
        ({}, 64, 8),
    ],
)
def test_a_containers_quota_is_the_most_of_its_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    files: dict[str, str],
    cores: int,
    each_of_8: int,
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert (usable_cores(), owned_cores(8)) == (cores, each_of_8)


def test_a_gpu_is_looked_for_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("ctypes.CDLL", asked.append)
    assert has_gpu_driver() and asked == ["libcuda.so.1"]

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert has_gpu_driver() == Path("/dev/kfd").exists()  # ROCm's
