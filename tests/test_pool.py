"""Results keep their order, and a worker that dies or fails is an error within seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from harl_fast.errors import DataError
from harl_fast.host import usable_cores
from harl_fast.pool import TASKS_AHEAD, ordered_map
from tests.tasks import arrays, double, getpid, large

runs = pytest.mark.parametrize("run", [1, TASKS_AHEAD])


def mapped(numbers: list[int], *, run: int, workers: int = 2) -> list[int]:
    def name(number: int) -> str:
        return f"number {number}"

    return list(ordered_map(double, numbers, workers=workers, describe=name, run=run))


@runs
def test_results_come_in_the_order_of_the_tasks(run: int) -> None:
    assert mapped(list(range(42)), run=run, workers=3) == [2 * number for number in range(42)]
    assert mapped([], run=run) == []


@runs
def test_a_worker_that_is_killed_is_an_error_that_names_its_task(run: int) -> None:
    with pytest.raises(DataError, match=r"worker process died \(SIGKILL\).*number 777.*--workers"):
        mapped([*range(22), 777, *range(20)], run=run)


@runs
def test_an_exception_in_a_worker_is_an_error_with_its_trace(run: int) -> None:
    with pytest.raises(DataError, match=r"(?s)number 666.*ValueError: the number of the beast"):
        mapped([*range(22), 666, *range(20)], run=run)


def test_tasks_of_a_run_go_to_one_worker() -> None:
    pids = list(ordered_map(getpid, range(24), workers=3, describe=str, run=4))
    assert all(len(set(pids[start : start + 4])) == 1 for start in range(0, 24, 4))
    assert len(set(pids)) == 3


@runs
def test_tasks_are_drawn_only_a_little_ahead_of_the_consumer(run: int) -> None:
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results = ordered_map(double, numbers(), workers=2, describe=str, run=run)
    with contextlib.closing(results):
        assert [next(results) for _ in range(10)] == list(range(2, 22, 2))
        time.sleep(0.3)
        assert drawn <= 10 + 2 * TASKS_AHEAD + 2 * run


@runs
@pytest.mark.parametrize("room", [0, 100, 3000, 1 << 20])
def test_arrays_arrive_whole_whatever_part_of_them_is_shared(run: int, room: int) -> None:
    results = ordered_map(arrays, range(40), workers=3, describe=str, run=run, room=room)
    for number, result in enumerate(results):
        np.testing.assert_equal(result, arrays(number))


def test_processes_share_the_memory_of_arrays() -> None:
    results = ordered_map(arrays, range(2), workers=1, describe=str, room=1 << 20)
    first, second = (result["parts"][1] for result in results)
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(first, second)  # the first was the consumer's until it went on


def test_closing_early_ends_the_workers() -> None:
    results = ordered_map(os.getpgid, [0] * 100, workers=2, describe=str)
    next(results)
    pids = children_of_workers(results)
    results.close()
    assert pids and not any(alive(pid) for pid in pids)


def test_workers_without_further_tasks_end_before_the_results_are_taken() -> None:
    results = ordered_map(double, [1], workers=2, describe=str)
    with contextlib.closing(results):
        assert next(results) == 2
        idle = children_of_workers(results)[1]
        deadline = time.monotonic() + 10
        while alive(idle):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_worker_that_dies_in_the_middle_of_an_answer_is_an_error() -> None:
    results = ordered_map(large, range(10), workers=1, describe=str)
    next(results)
    time.sleep(0.5)  # by now it has begun to answer, and waits for the pipe to be read
    os.kill(children_of_workers(results)[0], signal.SIGKILL)
    with pytest.raises(DataError, match="SIGKILL"):
        list(results)


def children_of_workers(results: object) -> list[int]:
    team = results.gi_frame.f_locals["team"]  # type: ignore[attr-defined]
    return [worker.process.pid for worker in team]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_at_least_one_core_is_usable() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
