"""Processes that map a function over tasks in order, and whose death is an error, never a hang.

A `concurrent.futures.ProcessPoolExecutor` does not say which task a worker died of, nor by which
signal, and it cannot end workers in the middle of their tasks.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import multiprocessing
import os
import pickle
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
from multiprocessing.reduction import DupFd
from typing import Any, Generic, TypeVar

from harl_fast.errors import DataError, explain
from harl_fast.files import LONGEST_TMPDIR, uninterrupted

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

PRELOAD: list[str] = []
"""Modules that are imported once, in the process that workers are forked from."""

TASKS_AHEAD = 4
"""How many finished tasks a worker may be ahead of the consumer; it bounds the memory in flight."""


_LIBC = ctypes.CDLL(None, use_errno=True)
_CLOSE_ON_EXEC = 1
"""MFD_CLOEXEC of memfd_create(2)."""
_ALIGNED = 64
"""Arrays in shared memory begin at multiples of so many bytes."""


class _Memory:
    """Memory that processes share: a part of ``room`` bytes for each task in flight.

    It has no name, so that no signal can leave it behind, and takes as much as was ever written.
    """

    def __init__(self, handle: int, parts: int, room: int) -> None:
        self._handle, self._count, self._room = handle, parts, room
        self._all = memoryview(mmap.mmap(handle, parts * room) if room else bytearray())

    @classmethod
    def make(cls, parts: int, room: int) -> _Memory:
        """Return new memory, whose file descriptor `close` closes."""
        # Not by `os`: conda's and uv's Python are built where the C library lacks it.
        handle = _LIBC.memfd_create(b"ordered_map", _CLOSE_ON_EXEC)
        if handle < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.truncate(handle, parts * room)
        return cls(handle, parts, room)

    @classmethod
    def join(cls, handle: Any, parts: int, room: int) -> _Memory:
        """Return the same memory in another process."""
        memory = cls(handle.detach(), parts, room)
        memory.close()
        return memory

    def __reduce__(self) -> tuple[Any, ...]:
        return _Memory.join, (DupFd(self._handle), self._count, self._room)

    def close(self) -> None:
        """Give the file descriptor back; the memory lasts as long as it is used."""
        os.close(self._handle)

    def pack(self, result: object, part: int) -> bytes:
        """Return a message with a result, but for the arrays in it that find room in a part."""
        room, places, end = self._part(part), list[tuple[int, int]](), 0

        def send(buffer: pickle.PickleBuffer) -> bool:
            """Return whether an array goes with the message, or else share it."""
            nonlocal end
            data = buffer.raw()
            start, end = end, end + data.nbytes
            if end > len(room):
                end = start
                return True
            room[start:end] = data
            places.append((start, end))
            end += -end % _ALIGNED
            return False

        rest = pickle.dumps(result, protocol=5, buffer_callback=send)
        return pickle.dumps((places, rest))

    def unpack(self, message: bytes, part: int) -> Any:
        """Return the result of a message; its arrays last until the part gets another's."""
        places, rest = pickle.loads(message)
        room = self._part(part)
        return pickle.loads(rest, buffers=[room[start:end] for start, end in places])

    def _part(self, number: int) -> memoryview:
        return self._all[number * self._room : (number + 1) * self._room]


@dataclass
class _Worker(Generic[TaskT]):
    process: BaseProcess
    connection: Connection[Any, Any]  # tasks one way, results the other
    tasks: deque[tuple[int, int, TaskT]] = field(default_factory=deque)
    """What it was given and has not answered yet: number, part of the memory, task."""


def ordered_map(
    work: Callable[[TaskT], ResultT],
    tasks: Iterable[TaskT],
    *,
    workers: int,
    describe: Callable[[TaskT], str],
    run: int = 1,
    room: int = 0,
) -> Generator[ResultT, None, None]:
    """Yield ``work(task)`` of each task, in the order of the tasks, from ``workers`` processes.

    work must be picklable. describe names a task in messages. run: how many tasks that follow one
    another a worker gets together, up to `TASKS_AHEAD`. room: bytes of shared memory for the arrays
    of a result, which then last until the next result is asked for; what finds no room there goes
    through a pipe. Raises `DataError` when a worker dies or ``work`` raises. Close the generator
    (`contextlib.closing`) to end the workers early.
    """
    # The workers are the parallelism; inside one, a second thread would only wait for its core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _check_open_files(workers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    team: list[_Worker[TaskT]] = []
    try:
        try:
            memory = _Memory.make(TASKS_AHEAD * workers + run, room)
            # A process that is told half of what it needs prints a trace.
            with contextlib.closing(memory), uninterrupted():
                for _ in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_serve, args=(theirs, work, memory), daemon=True
                    )
                    process.start()
                    theirs.close()  # else a worker's death would not end the pipe
                    team.append(_Worker(process, ours))
        except (OSError, EOFError) as error:
            raise DataError(_no_start(error, number=len(team) + 1)) from error
        yield from _run(team, tasks, describe, run, memory)
    finally:
        _stop(team)


def _run(
    team: list[_Worker[TaskT]],
    tasks: Iterable[TaskT],
    describe: Callable[[TaskT], str],
    run: int,
    memory: _Memory,
) -> Iterator[Any]:
    numbered, finished, shown = enumerate(tasks), dict[int, tuple[int, Any]](), 0
    most = TASKS_AHEAD * len(team)
    free, serving = list(range(most + run)), list(team)
    while True:
        given = sum(len(worker.tasks) for worker in serving)
        for worker in tuple(serving):
            if not worker.tasks and len(finished) + given < most:
                for number, task in itertools.islice(numbered, run):
                    worker.tasks.append((number, free.pop(), task))
                if not worker.tasks:  # there are no more; it ends while the others go on
                    worker.connection.close()
                    serving.remove(worker)
                    continue
                given += len(worker.tasks)
                _send(worker, describe)
        busy = [worker for worker in serving if worker.tasks]
        if not busy:
            return
        ready = set(wait([worker.connection for worker in busy]))
        for worker in busy:
            if worker.connection in ready:
                number, part, result = _receive(worker, describe, memory)
                finished[number] = part, result
        while shown in finished:
            part, result = finished.pop(shown)
            yield result
            free.append(part)
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
        worker.connection.send([(part, task) for _, part, task in worker.tasks])
    except OSError:
        raise _death(worker, describe) from None


def _receive(
    worker: _Worker[TaskT], describe: Callable[[TaskT], str], memory: _Memory
) -> tuple[int, int, Any]:
    try:
        message = worker.connection.recv_bytes()
    except (EOFError, OSError):  # OSError: it died in the middle of an answer
        raise _death(worker, describe) from None
    number, part, task = worker.tasks.popleft()
    result, problem = memory.unpack(message, part)
    if problem is not None:
        first, *trace = problem.split("\n")
        raise DataError(f"a worker failed on {describe(task)}. {first}", *trace)
    return number, part, result


def _death(worker: _Worker[TaskT], describe: Callable[[TaskT], str]) -> DataError:
    worker.process.join(5.0)
    code = worker.process.exitcode
    cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    where = describe(worker.tasks[0][2]) if worker.tasks else "nothing"
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


def _end_with_main() -> None:
    """Wait for the end of the main process, which is not the parent, and end this one."""
    main = multiprocessing.parent_process()
    assert main is not None
    wait([main.sentinel])
    os._exit(1)


def _serve(connection: Connection[Any, Any], work: Callable[[TaskT], Any], memory: _Memory) -> None:
    """Answer tasks until the other end closes, as it also does when the main process is killed."""
    for number in (signal.SIGINT, signal.SIGHUP):  # to all: the main process decides what they end
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_main, daemon=True).start()  # a task may last
    if "torch" in sys.modules:  # as below OpenBLAS: a worker has one core
        sys.modules["torch"].set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            for part, task in connection.recv():
                try:
                    reply: tuple[Any, str | None] = (work(task), None)
                except OSError as error:
                    reply = (None, explain(error))
                except Exception:  # noqa: BLE001  # sent on whole, and raised in the main process
                    trace = traceback.format_exc()
                    reply = (None, f"Please report this with the trace:\n{trace}")
                connection.send_bytes(memory.pack(reply, part))
