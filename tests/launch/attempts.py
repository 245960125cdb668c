"""Ranks that are forked from one process with all imports done, and killed at chosen moments.

A start through a launcher imports for seconds; here many starts share that. Each rank is a real
process that runs launch/pretrain.py's main and dies by a real SIGKILL.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

from harl_fast.engine.trainer import Stepper
from harl_fast.program import run_main
from launch.pretrain import main
from tests.engine.support import disturb_both
from tests.launch.jobs import free_port

LIMIT_S = 600.0
GRACE_S = 120.0
"""How long the other ranks may take to notice that one is gone."""


@dataclass(frozen=True)
class Kill:
    """When one rank of an attempt dies."""

    kind: str
    """time: after so many seconds. step: before an optimizer step. save: at a call of fsync or
    rename, of which each checkpoint has nine."""
    at: float
    rank: int = 0
    latest: float = float("inf")
    """Step before which a timed one happens at the latest: a machine may get faster meanwhile."""


def attempt(
    arguments: Sequence[str | Path],
    *,
    ranks: int,
    log: Path,
    kill: Kill | None = None,
    ids: Path | None = None,
    disturbed: bool = False,
    program: Callable[[list[str]], int] = main,
) -> list[int]:
    """Run one start on so many ranks; return their exit codes, -N after signal N.

    ids: file name to which each rank appends the samples of its steps. disturbed: whether `disturb`
    moves the weights before the first step. program: another one than launch/pretrain.py's main.
    """
    port, words = free_port(), [str(word) for word in arguments]
    children: list[int] = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ids is not None:
                _note_ids(ids.with_suffix(f".{rank}"))
            if disturbed:
                _disturb_first()
            _be_rank(rank, ranks, port, functools.partial(program, words), log, kill)
        children.append(child)
    return _wait(children, kill)


def _wait(children: list[int], kill: Kill | None) -> list[int]:
    """Return the exit codes. Raises AssertionError if a rank outlives another's failure."""
    codes: dict[int, int] = {}
    start, failed_s = time.monotonic(), float("inf")
    while len(codes) < len(children):
        now = time.monotonic()
        if kill is not None and kill.kind == "time" and now >= start + kill.at:
            if children[kill.rank] not in codes:
                os.kill(children[kill.rank], signal.SIGKILL)
            kill = None
        for child in [child for child in children if child not in codes]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            failed_s = min(failed_s, now)
        if now - start > LIMIT_S or now - failed_s > GRACE_S:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
            raise AssertionError(f"ranks still there; exit codes of the others: {codes}")
        time.sleep(0.005)
    return [codes[child] for child in children]


def _be_rank(
    rank: int,
    ranks: int,
    port: int,
    program: Callable[[], int],
    log: Path,
    kill: Kill | None,
) -> None:
    """Become a rank; does not return."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1), os.dup2(stream, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if kill is not None and kill.rank == rank:
        _arm(kill)
    code = 1
    try:
        run_main(program)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001  # a forked child must not run the parent's program
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    for thread in threading.enumerate():  # what the interpreter does at its end
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def _die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(kill: Kill) -> None:
    """Make this process die at a step, or at a call of fsync or rename once it trains."""
    advance = Stepper.advance

    def at_step(self: Stepper, *args: Any, **kwargs: Any) -> None:
        if self.step >= (kill.at if kill.kind == "step" else kill.latest):
            _die()
        advance(self, *args, **kwargs)

    calls = itertools.count()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: _die() if next(calls) >= kill.at else call(*args)

    def at_save(self: Stepper, *args: Any, **kwargs: Any) -> None:
        if isinstance(os.fsync, BuiltinFunctionType):  # not before: the start writes files too
            os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        advance(self, *args, **kwargs)

    Stepper.advance = at_save if kill.kind == "save" else at_step  # type: ignore[method-assign]


def _disturb_first() -> None:
    advance = Stepper.advance

    def advancing(self: Stepper, *args: Any, **kwargs: Any) -> None:
        Stepper.advance = advance  # type: ignore[method-assign]
        disturb_both(self.state)
        advance(self, *args, **kwargs)

    Stepper.advance = advancing  # type: ignore[method-assign]


def _note_ids(path: Path) -> None:
    advance = Stepper.advance

    def passing(batches: Any, step: int) -> Any:
        for batch in batches:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "ids": batch.ids.tolist()}) + "\n")
            yield batch

    def advancing(self: Stepper, batches: Any, *, epoch: int) -> None:
        advance(self, passing(batches, self.step), epoch=epoch)

    Stepper.advance = advancing  # type: ignore[method-assign]
