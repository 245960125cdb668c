"""Results keep their order, and a worker that dies or fails is an error within seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harl_fast.errors import DataError
from harl_fast.host import usable_cores
from harl_fast.pool import TASKS_AHEAD, Team, ordered_map
from tests.tasks import double, frozen, getpid, keep, large, note

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


def test_collections_in_a_worker_pass_over_what_it_shares() -> None:
    ((shared, own),) = ordered_map(frozen, [0], workers=1, describe=str)
    assert shared > 20 * own


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
def test_a_second_step_is_done_once_in_the_process_of_the_first(run: int, tmp_path: Path) -> None:
    with Team(keep, workers=3, describe=str, run=run, then=note) as team:
        results = team.map(range(40))
        for number, pid in enumerate(results):
            team.follow_up((str(tmp_path), number, pid))
        team.settle()
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(40))
    assert {path.read_text() for path in tmp_path.iterdir()} == {"kept here"}


def test_workers_go_on_while_second_steps_are_awaited(tmp_path: Path) -> None:
    with Team(keep, workers=2, describe=str, then=note) as team:
        results = team.map(range(9))
        for first in range(0, 9, 3):
            for number, pid in zip(range(first, first + 3), results, strict=False):
                team.follow_up((str(tmp_path), number, pid))
            team.settle()
            assert len(list(tmp_path.iterdir())) == first + 3


def test_a_second_steps_own_error_of_the_system_is_raised_as_it_is(tmp_path: Path) -> None:
    with Team(keep, workers=2, describe=str, then=note) as team:
        for number, pid in enumerate(team.map(range(4))):
            team.follow_up((str(tmp_path / "missing"), number, pid))
            break
        with pytest.raises(FileNotFoundError) as caught:
            team.settle()
    assert caught.value.filename == str(tmp_path / "missing" / "0")


def test_a_worker_that_is_killed_in_a_second_step_is_an_error_that_names_its_task() -> None:
    died = r"worker process died \(SIGKILL\).*number [01]\b"
    team = Team(keep, workers=2, describe=lambda n: f"number {n}", then=note)
    with pytest.raises(DataError, match=died), team:
        for _ in zip(range(3), team.map(range(9)), strict=False):
            team.follow_up(None)
        team.settle()


def test_tasks_and_results_that_no_pipe_holds_pass_each_other() -> None:
    tasks = [bytes(3_000_000)] * 12
    with contextlib.closing(ordered_map(bytes, tasks, workers=2, describe=str)) as results:
        assert [len(result) for result in results] == [3_000_000] * 12


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
    team = results.gi_frame.f_locals["team"]._team  # type: ignore[attr-defined]
    return [worker.process.pid for worker in team]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_at_least_one_core_is_usable() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
