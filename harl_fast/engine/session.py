"""The lifecycle of one rank, from opening the run folder to the exit code."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch.distributed as dist

from harl_fast.engine.config import (
    EngineConfig,
    read_engine_file,
    run_engine_file,
    settle,
    with_batch,
)
from harl_fast.engine.handover import hand_over, handed_over
from harl_fast.engine.machine import Machine, check_machine, leader_reports, this_machine
from harl_fast.engine.meeting import check_alike, meet
from harl_fast.engine.resume import Changes
from harl_fast.engine.runfolder import (
    begin,
    drop_markers,
    mark,
    open_run_folder,
    write_configs,
)
from harl_fast.engine.stop import Leaving, StopSignal
from harl_fast.errors import CheckpointError, HarlError
from harl_fast.files import to_stderr, uninterrupted
from harl_fast.lock import Lock, locked
from harl_fast.provenance import note_start
from harl_fast.runfiles import RunFolder
from harl_fast.section import Section
from harl_fast.side import SideOutputs, required
from harl_fast.supervision import supervisors
from harl_fast.textfile import tree_sha256

if TYPE_CHECKING:
    from harl_fast.engine.checkpoint.format import Checkpoint, Record
    from harl_fast.engine.loop import Loop
    from harl_fast.engine.state import LoopState

State = TypeVar("State", bound="LoopState")


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What all trainings need to know of a start."""

    folder: RunFolder
    config: Section
    engine_config: EngineConfig
    run_id: str
    """Of the run; drawn now if it is new. Rank 0's counts."""
    checkpoint: Checkpoint | None = None
    """Of the run that goes on; None for a new one."""
    init_from: Path | None = None
    """Where a new run's weights come from."""
    changes: Changes | None = None
    """Settings that differ from those before, as was allowed."""
    notes: list[str] = field(default_factory=list)
    """What the user should be told, one line each."""

    @property
    def record(self) -> Record | None:
        """Of the checkpoint that the run goes on from."""
        return None if self.checkpoint is None else self.checkpoint.record

    @property
    def step(self) -> int:
        """Optimizer steps done before."""
        return 0 if self.record is None else self.record.step

    @property
    def skipped(self) -> int:
        """Steps of these that had no effect."""
        return 0 if self.record is None else self.record.skipped


@dataclass(kw_only=True)
class Training(ABC, Generic[State]):
    """What a kind of training brings to `serve`: its command line's values and what they become.

    Each method is called once, in this order.
    """

    engine_file: Path
    engine_overrides: Sequence[str] = ()
    data: Path
    """Folder of the containers; after `stage`, that of their copies."""
    stage_to: Path | None = None
    """Folder on each machine's own disk, where the containers are to be copied before."""
    run: Path
    whole: Path | None = None
    """Folder of the whole job, where this training is one of several: its file `stop` ends this
    one, too, and its marker tells of a job that was stopped within this one."""
    resume: bool = False
    allow_change: Sequence[str] = ()
    quiet: bool = False
    time_limit_s: float | None = None
    data_name: str = field(default="", init=False)
    """Of the folder that was given, for results; its copies have names of their own."""
    done: bool = field(default=False, init=False)
    """Whether `serve` brought the run to its end; the same on all ranks."""

    source_option: ClassVar[str] = "--init-from"
    """Names the weights of a new run."""

    @abstractmethod
    def settle(self, machine: Machine) -> EngineConfig:
        """Return the engine's configuration. Raises HarlError; nothing may take long."""

    @abstractmethod
    def decide(self, folder: RunFolder, engine_config: EngineConfig, machine: Machine) -> Beginning:
        """Settle what the start does, open the data, and return the start.

        Raises HarlError for whatever can be known before the ranks meet.
        """

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks, see `meeting.check_alike`."""

    @abstractmethod
    def prepare(self, machine: Machine) -> State:
        """Return what the rank trains with, and note the start in the run folder."""

    @abstractmethod
    def loop(self, state: State, *, stop: StopSignal, still_held: Callable[[], bool]) -> Loop:
        """Return the training, ready to run."""

    def stage(self, machine: Machine) -> None:
        """Go on with copies of the containers, see `staging.stage`, if that was asked for."""
        self.data_name = self.data_name or self.data.resolve().name
        if self.stage_to is not None:
            from harl_fast.data.container.staging import stage

            self.data = stage(self.data, self.stage_to, first=machine.local_rank == 0)
            self.stage_to = None

    def after(self, loop: Loop, state: State) -> str:
        """Do what follows a training that came to its end; return why the run has not, or ""."""
        return ""

    def _settled(
        self, machine: Machine, *, batch_global: int | None = None
    ) -> tuple[EngineConfig, list[str]]:
        """Return the engine's configuration, and what is to be told of it.

        batch_global: in place of the file's own. Raises ConfigError.
        """
        own = RunFolder(self.run).engine if self.resume else None
        file, told = run_engine_file(
            self.engine_file, own=own, overrides=self.engine_overrides, ranks=machine.ranks
        )
        source = str(self.engine_file)
        check_machine(file.harl_fast, machine, source=source)
        if batch_global is not None:
            file = with_batch(file, batch_global, ranks=machine.ranks)
        return settle(file, ranks=machine.ranks, source=source), [told] if told else []


def serve(trainings: Iterable[Training[State]]) -> int:
    """Run one rank of a job's trainings and return its exit code, see `Loop.run`.

    Each begins when the one before has come to its end; a signal between two is the next one's. The
    ranks stay together until `deepspeed.stop`: how a run ended is marked before, as it may abort.
    Raises HarlError.
    """
    watched = supervisors()
    machine, code = this_machine(), 0
    with leader_reports(machine), StopSignal(supervisors=watched) as stop:
        for training in trainings:
            code = _serve(training, machine, stop)
            if code or not training.done:  # a training that was asked to stop ends with 0
                break
    return code


def _serve(training: Training[State], machine: Machine, stop: StopSignal) -> int:
    """Run one training, see `serve`.

    Configurations, data and folders are refused before the ranks meet; only those on other machines
    than rank 0's meet it first, for they need not see its run folder.
    """
    with ExitStack() as held:
        folder, lock = RunFolder(training.run), None
        try:
            with ExitStack() as received:
                if machine.elsewhere:
                    stop.begin()
                    training.stage(machine)  # while rank 0's machine does so, too
                    _receive(training, machine, received)
                engine_config = training.settle(machine)
                if not machine.elsewhere:
                    open_run_folder(
                        training.run, resume=training.resume, source=training.source_option
                    )
                    stop.begin()
                    training.stage(machine)
                    with uninterrupted():  # or nobody would know of the lock
                        lock = _take(folder, machine, engine_config, held)
                    # What was found may have changed until now.
                    open_run_folder(
                        training.run, resume=training.resume, source=training.source_option
                    )
                start = training.decide(RunFolder(training.run), engine_config, machine)
                if not machine.elsewhere:
                    patience = engine_config.file.harl_fast.timeout_minutes
                    meet(machine, timeout_minutes=patience, log=folder.deepspeed)
                    if machine.several:
                        hand_over(training.run, resume=training.resume, rank=machine.rank)
                _check_step(start.step)
                files = tree_sha256(start.engine_config.record())
                check_alike({"engine files": files, **training.facts()})
                state = training.prepare(machine)
                stop.starting = False
        except Leaving:
            if machine.rank == 0:
                _leave(training, folder, held, locked_before=lock is not None, reason=stop.reason)
            if machine.ranks > 1:
                held.close()
                os._exit(0)  # an orderly end would wait for ranks that may wait for this one
            return 0
        still_held = lock.still_held if lock is not None else lambda: True
        loop = training.loop(state, stop=stop, still_held=still_held)
        loop.folder = folder
        loop.whole = None if training.whole is None else RunFolder(training.whole)
        return _train(training, loop, state)


def _train(training: Training[State], loop: Loop, state: State) -> int:
    """Train, and mark how that ended; return the exit code."""
    from harl_fast import collectives
    from harl_fast.engine.loop import INTERRUPTED

    code, result = loop.run(), loop.result
    assert result is not None
    done, reason = result.done, result.reason
    if code == 0 and done and (left := training.after(loop, state)):
        done, reason = False, left
    collectives.wait_for_all()
    training.done = code == 0 and done
    # On every machine, where a script or launch/guard.py may wait for it.
    if state.machine.local_rank == 0 and code in (0, INTERRUPTED):
        if done:
            mark(loop.folder.finished, step=result.step, reason=reason)
        else:
            _mark_preempted(training, loop.folder, step=result.step, reason=reason)
    return code


def _mark_preempted(
    training: Training[State], folder: RunFolder, *, step: int, reason: str
) -> None:
    """Mark a training that ended before its end, and the whole job of which it is a part."""
    mark(folder.preempted, step=step, reason=reason)
    if training.whole is not None:
        whole = RunFolder(training.whole)
        mark(whole.preempted, step=step, reason=f"{folder.path.name}: {reason}")


def _receive(training: Training[State], machine: Machine, received: ExitStack) -> None:
    """Let a training work on what rank 0, on another machine, found in the run folder.

    It is deleted when ``received`` is closed. Whether a run goes on is rank 0's decision, too.
    """
    file = read_engine_file(training.engine_file, overrides=training.engine_overrides)
    meet(machine, timeout_minutes=file.harl_fast.timeout_minutes)
    training.run, training.resume = received.enter_context(handed_over())


def leave() -> None:
    """Leave after the last training of this process; all ranks must call it."""
    if dist.is_initialized():
        from harl_fast.engine import deepspeed as ds

        ds.stop()


def _take(
    folder: RunFolder, machine: Machine, engine_config: EngineConfig, held: ExitStack
) -> Lock | None:
    """Hold the run folder's lock until ``held`` is closed and return it; None but on rank 0.

    Raises HarlError if another process holds it. Of several ranks the others hear of that when
    they meet: not all launchers end them.
    """
    if machine.rank > 0:
        return None
    try:
        return held.enter_context(locked(folder.lock, output=folder.path))
    except HarlError as refusal:
        if machine.ranks > 1:
            patience = engine_config.file.harl_fast.timeout_minutes
            meet(machine, timeout_minutes=patience, refusal=refusal)
        raise


def _check_step(step: int) -> None:
    """Raise CheckpointError on all ranks if they would start from different steps."""
    from harl_fast import collectives

    if collectives.max_over_ranks(step) != -collectives.max_over_ranks(-step):
        raise CheckpointError(
            f"the ranks found different checkpoints, this one of step {step}: another job or a "
            f"slow file server changed the folder meanwhile. Start again"
        )


def note_beginning(
    start: Beginning,
    data: dict[str, Any],
    *,
    ranks: int,
    manifest: Path,
    whole: Path | None = None,
) -> None:
    """Write what a start writes before its first step. Raises CheckpointError if it cannot be.

    whole: see `Training`.
    """
    folder = start.folder
    for text in start.notes:
        to_stderr(text)
    with required(folder.path):
        begin(folder, step=start.step)
        if whole is not None and not RunFolder(whole).config.exists():  # or that run did so
            drop_markers(RunFolder(whole))
        note_start(
            folder.provenance,
            run_id=start.run_id,
            manifest=manifest,
            data=data,
            step=start.step,
            ranks=ranks,
            source=start.init_from,
            changes=start.changes,
        )
        write_configs(folder, start.config, start.engine_config)


def _leave(
    training: Training[State],
    folder: RunFolder,
    held: ExitStack,
    *,
    locked_before: bool,
    reason: str,
) -> None:
    """Note that the start was given up. Raises HarlError if the folder is not its own by now."""
    from harl_fast.engine.checkpoint.format import latest_step
    from harl_fast.engine.monitor.runjson import RunJson
    from harl_fast.engine.monitor.sink import RunInfo

    to_stderr(f"stopped by {reason} before the first step")
    if not locked_before:  # it was still copying containers
        held.enter_context(locked(folder.lock, output=folder.path))
        open_run_folder(training.run, resume=training.resume, source=training.source_option)
    step = latest_step(folder.checkpoints)
    _mark_preempted(training, folder, step=step, reason=reason)
    status = RunJson(RunInfo(folder, first_step=step), SideOutputs(to_stderr))
    status.state("preempted", reason)
