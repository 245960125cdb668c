"""Processes that map a function over tasks in order, and whose death is an error, never a hang.

A `concurrent.futures.ProcessPoolExecutor` does not say which task a worker died of, nor by which
signal, and it cannot end workers in the middle of their tasks.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from harl_fast.errors import DataError, explain
from harl_fast.files import LONGEST_TMPDIR, uninterrupted

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

PRELOAD: list[str] = []
"""Modules that are imported once, in the process that workers are forked from."""

TASKS_AHEAD = 4
"""How many finished tasks a worker may be ahead of the consumer; it bounds the memory in flight."""


@dataclass
class _Worker(Generic[TaskT]):
    process: BaseProcess
    connection: Connection[Any, Any]  # tasks one way, results the other
    tasks: deque[tuple[int, TaskT]] = field(default_factory=deque)
    """What it was given and has not answered yet."""


def ordered_map(
    work: Callable[[TaskT], ResultT],
    tasks: Iterable[TaskT],
    *,
    workers: int,
    describe: Callable[[TaskT], str],
    run: int = 1,
) -> Generator[ResultT, None, None]:
    """Yield ``work(task)`` of each task, in the order of the tasks, from ``workers`` processes.

    work must be picklable. describe names a task in messages. run: how many tasks that follow one
    another a worker gets together, up to `TASKS_AHEAD`. Raises `DataError` when a worker
    dies or ``work`` raises. Close the generator (`contextlib.closing`) to end the workers early.
    """
    # The workers are the parallelism; inside one, a second thread would only wait for its core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _check_open_files(workers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    team: list[_Worker[TaskT]] = []
    try:
        try:
            with uninterrupted():  # a process that is told half of what it needs prints a trace
                for _ in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
                    process.start()
                    theirs.close()  # else a worker's death would not end the pipe
                    team.append(_Worker(process, ours))
        except (OSError, EOFError) as error:
            raise DataError(_no_start(error, number=len(team) + 1)) from error
        yield from _run(team, tasks, describe, run)
    finally:
        _stop(team)


def _run(
    team: list[_Worker[TaskT]],
    tasks: Iterable[TaskT],
    describe: Callable[[TaskT], str],
    run: int,
) -> Iterator[Any]:
    numbered, finished, shown = enumerate(tasks), dict[int, Any](), 0
    while True:
        given = sum(len(worker.tasks) for worker in team)
        for worker in team:
            if not worker.tasks and len(finished) + given < TASKS_AHEAD * len(team):
                worker.tasks.extend(itertools.islice(numbered, run))
                if not worker.tasks:
                    break
                given += len(worker.tasks)
                _send(worker, describe)
        busy = [worker for worker in team if worker.tasks]
        if not busy:
            return
        ready = set(wait([worker.connection for worker in busy]))
        for worker in busy:
            if worker.connection in ready:
                number, result = _receive(worker, describe)
                finished[number] = result
        while shown in finished:
            yield finished.pop(shown)
            shown += 1


def _check_open_files(workers: int) -> None:
    """Raise `DataError` unless this process may open what so many workers need."""
    # Each costs this process two and the one it is forked from three, which prints a trace of its
    # own when it has no more. The rest is for the program.
    least, limit = 24 + 3 * workers, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < least:
        raise DataError(
            f"{workers} workers need {least} open files, this process may open {limit}: allow more "
            f"(`ulimit -n 4096`), or use fewer workers, then run the command again"
        )


def _no_start(error: OSError | EOFError, *, number: int) -> str:
    """Say why a worker process did not start."""
    sockets = tempfile.gettempdir()
    if len(os.fsencode(sockets)) > LONGEST_TMPDIR:
        reason = (
            f"the folder for temporary files, {sockets}, has a longer name than sockets may have: "
            f"set TMPDIR to one of at most {LONGEST_TMPDIR} letters, then run the command again"
        )
    elif isinstance(error, EOFError):
        reason = "the process that starts them died; is there enough memory, and `ulimit -n`?"
    else:
        reason = explain(error)
    return f"worker process {number} could not be started: {reason}"


def _send(worker: _Worker[TaskT], describe: Callable[[TaskT], str]) -> None:
    try:
        worker.connection.send([task for _, task in worker.tasks])
    except OSError:
        raise _death(worker, describe) from None


def _receive(worker: _Worker[TaskT], describe: Callable[[TaskT], str]) -> tuple[int, Any]:
    try:
        result, problem = worker.connection.recv()
    except (EOFError, OSError):  # OSError: it died in the middle of an answer
        raise _death(worker, describe) from None
    number, task = worker.tasks.popleft()
    if problem is not None:
        first, *trace = problem.split("\n")
        raise DataError(f"a worker failed on {describe(task)}. {first}", *trace)
    return number, result


def _death(worker: _Worker[TaskT], describe: Callable[[TaskT], str]) -> DataError:
    worker.process.join(5.0)
    code = worker.process.exitcode
    cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    where = describe(worker.tasks[0][1]) if worker.tasks else "nothing"
    return DataError(
        f"a worker process died ({cause}) while it held {where}. SIGKILL is mostly the system "
        f"running out of memory: use fewer --workers. Otherwise one of these files crashes the "
        f"decoder: move it away. Nothing was written under a final name; run the command again."
    )


def _stop(team: list[_Worker[TaskT]]) -> None:
    for worker in team:
        worker.connection.close()
        worker.process.terminate()
    for worker in team:
        worker.process.join(5.0)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _end_with_main() -> None:
    """Wait for the end of the main process, which is not the parent, and end this one."""
    main = multiprocessing.parent_process()
    assert main is not None
    wait([main.sentinel])
    os._exit(1)


def _serve(connection: Connection[Any, Any], work: Callable[[TaskT], Any]) -> None:
    """Answer tasks until the other end closes, as it also does when the main process is killed."""
    for number in (signal.SIGINT, signal.SIGHUP):  # to all: the main process decides what they end
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_main, daemon=True).start()  # a task may last
    if "torch" in sys.modules:  # as below OpenBLAS: a worker has one core
        sys.modules["torch"].set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            for task in connection.recv():
                try:
                    reply: tuple[Any, str | None] = (work(task), None)
                except OSError as error:
                    reply = (None, explain(error))
                except Exception:  # noqa: BLE001  # sent on whole, and raised in the main process
                    trace = traceback.format_exc()
                    reply = (None, f"Please report this with the trace:\n{trace}")
                connection.send(reply)
