"""Shards converted as tasks of a Ray cluster. The one module that imports `ray`, an extra."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harl_fast
from harl_fast.errors import ConfigError, DataError, HarlError, explain, one_line
from preprocess.convert import Task, convert
from preprocess.masks.spec import MethodSpec
from preprocess.places import LocalPlace, Place
from preprocess.shards import Job, write_shard
from preprocess.work import RECIPE, stamp_of, tool_versions

AUTO = "auto"
RETRIES = 8
"""How often a shard is begun again when its process or machine dies."""
_ROOT = Path(harl_fast.__file__).parents[1]
_ANSWER_S = 10.0
_LOOKED_AT = 8
"""Images of a shard of which a machine must see what the head sees, before it begins."""


@contextlib.contextmanager
def cluster(address: str, *, workers: int) -> Iterator[Any]:
    """Connect to a cluster and yield the module `ray`; `DataError` if it does not answer.

    `AUTO` is the cluster that this machine belongs to, or else one of ``workers`` cores that is
    started here and ended at the end. Tasks that still run then are ended, too, as Ray does when
    their driver leaves (`ray.cancel` as well would abort the process: the two race).
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--ray needs the package ray, which is not installed: pip install 'ray>=2.40,<3'; "
            "without --ray, processes of this machine do the work"
        ) from error
    if address != AUTO:
        _check_answer(address)
    # Programs lie at the same place everywhere, or are installed.
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1"}},
        "logging_level": logging.ERROR,
        "log_to_driver": False,
    }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address=address, **options)
        except ConnectionError:
            if address != AUTO:
                raise
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **options)
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(
            f"--ray {address}: {one_line(str(error).strip())[:300]}. Start the cluster (`ray start "
            f"--head`), check the address, or leave --ray out"
        ) from error
    except SystemExit as left:  # by Ray's answer to SIGTERM
        raise KeyboardInterrupt from left
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Raise `DataError` unless something answers there: Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise DataError(
            f"--ray {one_line(address)}: {one_line(str(error))}. Give HOST:PORT of a cluster's "
            f"head (`ray start --head` prints it), or auto"
        ) from error


def convert_on(
    ray: Any,
    place: Place,
    jobs: Sequence[tuple[Job, Callable[[], Iterable[list[Task]]], tuple[MethodSpec, ...]]],
    advance: Callable[[int], object],
) -> None:
    """Convert shards as tasks of a cluster, one core each, and wait for all of them.

    jobs: with a function that lists the shard's tasks, and the mask methods. A shard whose process
    or machine dies is begun again elsewhere. Raises `DataError` when one cannot be made. Tasks
    that are running then end with the connection: see `cluster`.
    """
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_make)
    if isinstance(place, LocalPlace):
        place = LocalPlace(place.root.resolve())
    waiting, running = iter(jobs), dict[Any, Job]()
    while True:
        # The lists of tasks are large: not all at once.
        room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
        for job, tasks, methods in itertools.islice(waiting, max(0, room)):
            chunks = list(tasks())
            known = [(task, stamp_of(task.image)) for task in _some(chunks)]
            reference = remote.remote(
                place, job, chunks, methods, known, tool_versions(), os.getcwd()
            )
            running[reference] = job
        if not running:
            return
        for reference in ray.wait(list(running), timeout=10.0)[0]:
            job = running.pop(reference)
            _collect(ray, reference, job)
            advance(len(job.rows))


def _some(chunks: Sequence[list[Task]]) -> list[Task]:
    step = max(1, len(chunks) // _LOOKED_AT)
    return [chunk[0] for chunk in chunks[::step]]


def _collect(ray: Any, reference: Any, job: Job) -> None:
    """Take note of a shard's end; raises `DataError` if it was not made."""
    what = f"images {job.rows.start:,} to {job.rows.stop - 1:,} of {job.split}"
    try:
        problem = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = one_line(str(error).strip().split("\n")[0])[:300]
        raise DataError(
            f"the machine or process that converted {what} died, {RETRIES + 1} times: {first}. "
            f"It may lack memory, or a file crashes the decoder: without --ray the command says "
            f"which. Finished shards stay"
        ) from error
    if problem:
        raise DataError(f"{what} could not be converted: {problem}")


def _make(
    place: Place,
    job: Job,
    chunks: list[list[Task]],
    methods: tuple[MethodSpec, ...],
    known: list[tuple[Task, tuple[int, int]]],
    versions: dict[str, str],
    folder: str,
) -> str:
    """Convert one shard, on whichever machine; return why it cannot be done, or ""."""
    here = f"on {os.uname().nodename}"
    with contextlib.suppress(OSError):
        os.chdir(folder)  # names of files may be relative to it
    try:
        if tool_versions() != versions:
            differing = [f"{name} {tool_versions()[name]}" for name in versions]
            return f"{here} other versions are installed ({', '.join(differing)}): install the same"
        if not place.exists(str(Path(job.folder).with_name(RECIPE))):
            return f"{here} there is no {place}: give an --out that all machines share"
        for task, stamp in known:
            if stamp_of(task.image) != stamp:
                return (
                    f"{here} {task.name} is missing or another file than on the head: all machines "
                    f"must see the same images"
                )
        results = (convert(chunk, job.settings, methods) for chunk in chunks)
        write_shard(place, job, results, lambda count: None)
    except OSError as error:
        return f"{here} {explain(error)}"
    except HarlError as error:
        return f"{here} {error}"
    except Exception:  # noqa: BLE001  # sent on whole, and raised by the head
        return f"{here}. Please report this with the trace:\n{traceback.format_exc()}"
    return ""
