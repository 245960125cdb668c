"""What a process may use of its machine: cores of a rank, and whether a GPU may be there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harl_fast.host import has_gpu_driver, owned_cores


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
    assert owned_cores(ranks) == expected


def test_a_gpu_is_looked_for_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("ctypes.CDLL", asked.append)
    assert has_gpu_driver() and asked == ["libcuda.so.1"]

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert has_gpu_driver() == Path("/dev/kfd").exists()  # ROCm's
