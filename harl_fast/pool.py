"""Processes that map a function over tasks in order, and whose death is an error, never a hang.

A `concurrent.futures.ProcessPoolExecutor` does not say which task a worker died of, nor by which
signal, and it cannot end workers in the middle of their tasks.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import queue
import resource
import signal
import sys
import tempfile
import threading
import traceback
import warnings
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
# It has imported the program, which runpy makes their main module again.
warnings.filterwarnings("ignore", ".* found in sys.modules after import of", RuntimeWarning)

TASKS_AHEAD = 4
"""How many finished tasks a worker may be ahead of the consumer; it bounds the memory in flight."""


@dataclass
class _Worker(Generic[TaskT]):
    process: BaseProcess
    connection: Connection[Any, Any]  # orders one way, replies the other
    orders: deque[tuple[int | None, TaskT]] = field(default_factory=deque)
    """What it was given and has not answered yet: a task's number, or None for the task's second
    step; and the task."""
    unsent: list[tuple[bool, Any]] = field(default_factory=list)
    """What of that waits to be sent, all together: whether it is a task, and what it is given."""


def ordered_map(
    work: Callable[[TaskT], ResultT],
    tasks: Iterable[TaskT],
    *,
    workers: int,
    describe: Callable[[TaskT], str],
    run: int = 1,
) -> Generator[ResultT, None, None]:
    """Yield ``work(task)`` of each task, in the order of the tasks, from ``workers`` processes.

    See `Team`. Close the generator (`contextlib.closing`) to end the workers early.
    """
    team: Team[TaskT, ResultT] = Team(work, workers=workers, describe=describe, run=run)
    with team:
        yield from team.map(tasks)


class Team(Generic[TaskT, ResultT]):
    """Worker processes, which end with the context."""

    def __init__(
        self,
        work: Callable[[TaskT], Any],
        *,
        workers: int,
        describe: Callable[[TaskT], str],
        run: int = 1,
        then: Callable[[Any, Any], object] | None = None,
    ) -> None:
        """Set up what the workers do; they start with the context.

        work: picklable. describe names a task in messages. run: how many tasks that follow one
        another a worker gets together, up to `TASKS_AHEAD`. then: a second step, ``then(kept,
        word)``: ``work`` returns ``(result, kept)``, of which the latter stays in the worker until
        `follow_up` sends the word.
        """
        self._work, self._describe, self._run, self._then = work, describe, run, then
        self.workers = workers
        """How many they are."""
        self._team: list[_Worker[TaskT]] = []
        self._serving: list[_Worker[TaskT]] = []
        self._tasks: Iterator[tuple[int, TaskT]] = iter(())
        self._finished: dict[int, tuple[_Worker[TaskT], TaskT, ResultT]] = {}
        self._pending: deque[tuple[_Worker[TaskT], TaskT]] = deque()
        self._ahead = self._following = 0
        """Tasks whose result the consumer has not got, and second steps that are not done."""

    def __enter__(self) -> Team[TaskT, ResultT]:
        # The workers are the parallelism; inside one, a second thread would only wait for its core.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        _check_open_files(self.workers)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        try:
            with uninterrupted():  # a process that is told half of what it needs prints a trace
                for _ in range(self.workers):
                    ours, theirs = context.Pipe()
                    given = (theirs, self._work, self._then)
                    process = context.Process(target=_serve, args=given, daemon=True)
                    process.start()
                    theirs.close()  # else a worker's death would not end the pipe
                    self._team.append(_Worker(process, ours))
        except BaseException as error:
            number = len(self._team) + 1
            _stop(self._team)
            if isinstance(error, (OSError, EOFError)):
                raise DataError(_no_start(error, number=number)) from error
            raise
        self._serving = list(self._team)
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._team)

    def map(self, tasks: Iterable[TaskT]) -> Iterator[ResultT]:
        """Yield the result of each task, in the order of the tasks.

        Raises `DataError` when a worker dies or ``work`` raises, in this or a second step; an
        `OSError` of a second step is raised as it is.
        """
        self._tasks, shown = enumerate(tasks), 0
        while True:
            while shown in self._finished:
                worker, task, result = self._finished.pop(shown)
                self._ahead -= 1
                if self._then is not None:
                    self._pending.append((worker, task))
                yield result
                shown += 1
            if not self._advance():
                return

    def follow_up(self, word: object) -> None:
        """Order the second step of the oldest result that lacks it, in the worker that made it.

        The order is sent when the next result is asked for, with a new task.
        """
        worker, task = self._pending.popleft()
        worker.orders.append((None, task))
        worker.unsent.append((False, word))
        self._following += 1

    def settle(self) -> None:
        """Wait until all second steps are done."""
        while self._following:
            self._advance()
        self._supply()

    def _supply(self) -> None:
        """Give out tasks, one more than each worker is at; those without further ones end."""
        for least in range(2):
            for worker in tuple(self._serving):
                if len(worker.orders) <= least and not self._give(worker):
                    worker.connection.close()
                    self._serving.remove(worker)

    def _advance(self) -> bool:
        """Wait for replies, with all workers busy; return whether there was one to wait for."""
        self._supply()
        self._send()
        busy = [worker for worker in self._serving if worker.orders]
        ready = set(wait([worker.connection for worker in busy])) if busy else ()
        for worker in busy:
            if worker.connection in ready:
                self._receive(worker)
        return bool(busy)

    def _give(self, worker: _Worker[TaskT]) -> bool:
        """Give a worker its next tasks; return whether it is still needed."""
        if self._ahead >= TASKS_AHEAD * len(self._team):
            return True
        taken = list(itertools.islice(self._tasks, self._run))
        if not taken:
            waiting = self._then is not None and (self._finished or self._pending)
            return bool(worker.orders or waiting)
        worker.orders.extend(taken)
        worker.unsent.extend((True, task) for _, task in taken)
        self._ahead += len(taken)
        return True

    def _send(self) -> None:
        for worker in self._serving:
            if worker.unsent:
                # A worker that died is found by `_receive`, after what it answered before.
                with contextlib.suppress(OSError):
                    worker.connection.send(worker.unsent)
                worker.unsent.clear()

    def _receive(self, worker: _Worker[TaskT]) -> None:
        try:
            answers = worker.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of an answer
            raise _death(worker, self._describe) from None
        for result, problem in answers:
            number, task = worker.orders.popleft()
            if isinstance(problem, OSError):
                raise problem
            if problem is not None:
                first, *trace = problem.split("\n")
                raise DataError(f"a worker failed on {self._describe(task)}. {first}", *trace)
            if number is None:
                self._following -= 1
            else:
                self._finished[number] = worker, task, result


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


def _death(worker: _Worker[TaskT], describe: Callable[[TaskT], str]) -> DataError:
    worker.process.join(5.0)
    code = worker.process.exitcode
    cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    # It may have done a second step, and be at the next order: its answers come together.
    held = list(worker.orders)[: 2 if worker.orders and worker.orders[0][0] is None else 1]
    where = " or ".join(describe(task) for _, task in held) or "nothing"
    return DataError(
        f"a worker process died ({cause}) while it held {where}. SIGKILL is mostly the system "
        f"running out of memory: use fewer --workers. Otherwise one of these files crashes the "
        f"decoder: move it away. Nothing was written under a final name; run the command again."
    )


def _stop(team: list[_Worker[TaskT]]) -> None:
    for worker in team:
        worker.connection.close()
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in team:
        worker.process.join(5.0)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _take_orders(
    connection: Connection[Any, Any], orders: queue.SimpleQueue[tuple[bool, Any]]
) -> None:
    """Take orders as they come, so that none waits in the pipe; end this process when it closes.

    As it also does when the main process is killed: a task may last.
    """
    try:
        while True:
            for order in connection.recv():
                orders.put(order)
    except (EOFError, OSError):
        os._exit(0)
    except Exception:  # noqa: BLE001  # an order that cannot be read: the main process sees the end
        traceback.print_exc()
        os._exit(1)


def _serve(
    connection: Connection[Any, Any],
    work: Callable[[Any], Any],
    then: Callable[[Any, Any], object] | None,
) -> None:
    """Answer orders until the other end closes."""
    for number in (signal.SIGINT, signal.SIGHUP):  # to all: the main process decides what they end
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # else each full collection takes 0.15 s, and a copy of the pages that are shared
    if "torch" in sys.modules:  # as below OpenBLAS: a worker has one core
        sys.modules["torch"].set_num_threads(1)
    orders, kept, answers = queue.SimpleQueue[tuple[bool, Any]](), deque[Any](), list[Any]()
    threading.Thread(target=_take_orders, args=(connection, orders), daemon=True).start()
    with contextlib.suppress(OSError):
        while True:
            is_task, given = orders.get()
            result, problem = None, None
            try:
                if not is_task:
                    assert then is not None
                    then(kept.popleft(), given)
                elif then is None:
                    result = work(given)
                else:
                    result, rest = work(given)
                    kept.append(rest)
            except OSError as error:
                problem = explain(error) if is_task else error
            except Exception:  # noqa: BLE001  # sent on whole, and raised in the main process
                problem = f"Please report this with the trace:\n{traceback.format_exc()}"
            answers.append((result, problem))
            # Of a second step nothing is waited for: it is told with the next result.
            if is_task or problem is not None or orders.empty():
                connection.send(answers)
                answers.clear()
