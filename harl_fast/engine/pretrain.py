"""A pretraining run from its command line's values to its exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harl_fast.engine.config import EngineConfig, run_engine_file, settle
from harl_fast.engine.machine import Machine, check_machine, leader_reports, this_machine
from harl_fast.engine.provenance import note_start, read_provenance
from harl_fast.engine.runfolder import RunFolder, begin, mark, open_run_folder, write_configs
from harl_fast.engine.side import SideOutputs, required
from harl_fast.engine.stop import Leaving, StopSignal
from harl_fast.errors import CheckpointError, HarlError
from harl_fast.files import to_stderr
from harl_fast.lock import Lock, locked
from harl_fast.supervision import supervisors

if TYPE_CHECKING:
    from harl_fast.data.loader import BetonLoader
    from harl_fast.engine.monitor.monitor import Sheet
    from harl_fast.engine.start import Start
    from harl_fast.engine.state import TrainState


def pretrain(
    *,
    engine_file: Path,
    engine_overrides: Sequence[str] = (),
    config_name: str | None,
    config_overrides: Sequence[str] = (),
    data: Path,
    run: Path,
    resume: bool = False,
    init_from: Path | None = None,
    allow_change: Sequence[str] = (),
    quiet: bool = False,
    sheet: Sheet | None = None,
    time_limit_s: float | None = None,
) -> int:
    """Run one rank of a pretraining and return its exit code, see `Trainer.run`.

    Configurations, data and folders are refused before the ranks meet. See launch/pretrain.py for
    the arguments. Raises HarlError.
    """
    watched = supervisors()
    machine = this_machine()
    with leader_reports(machine), StopSignal(supervisors=watched) as stop, ExitStack() as held:
        folder = RunFolder(run)
        own = folder.engine if resume else None
        file, told = run_engine_file(
            engine_file, own=own, overrides=engine_overrides, ranks=machine.ranks
        )
        check_machine(file.harl_fast, machine, source=str(engine_file))
        engine_config = settle(file, ranks=machine.ranks, source=str(engine_file))
        open_run_folder(run, resume=resume)
        lock = None
        try:
            stop.starting = True
            lock = _take(folder, machine, engine_config, held)
            open_run_folder(run, resume=resume)  # what was found may have changed until now
            # FFCV, numba and DeepSpeed take seconds, which the refusals above need not wait for.
            from harl_fast.engine.start import Request, decide
            from harl_fast.engine.views import build_loader

            request = Request(config_name, config_overrides, resume, init_from, allow_change)
            start = decide(folder, engine_config, request)
            start.notes.extend([told] if told else [])
            loader = build_loader(
                start.config, engine_config, machine, data=data, epoch=start.epoch
            )
            _meet(machine, engine_config, step=start.step, log=folder.deepspeed)
            state = prepare(start, machine, loader=loader, data=data)
            stop.starting = False
        except Leaving:
            if lock is not None:
                _leave(folder, reason=stop.reason)
            if machine.ranks > 1:
                held.close()
                os._exit(0)  # an orderly end would wait for ranks that may wait for this one
            return 0
        return _train(
            start, state, quiet=quiet, sheet=sheet, time_limit_s=time_limit_s, stop=stop, lock=lock
        )


def _train(
    start: Start,
    state: TrainState,
    *,
    quiet: bool,
    sheet: Sheet | None,
    time_limit_s: float | None,
    stop: StopSignal,
    lock: Lock | None,
) -> int:
    """Train, and mark how that ended; return the exit code. lock: rank 0's of the folder."""
    from harl_fast.engine import deepspeed as ds
    from harl_fast.engine.trainer import INTERRUPTED, Trainer

    trainer = Trainer(
        state,
        start.folder,
        step=start.step,
        skipped=start.skipped,
        run_id=start.run_id,
        quiet=quiet,
        sheet=sheet,
        time_limit_s=time_limit_s,
        stop=stop,
        still_held=lock.still_held if lock is not None else lambda: True,
    )
    code, result = trainer.run(), trainer.result
    ds.stop()
    if state.machine.rank == 0 and result is not None and code in (0, INTERRUPTED):
        marker = start.folder.finished if result.done else start.folder.preempted
        mark(marker, step=result.step, reason=result.reason)
    return code


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
            _meet(machine, engine_config, refusal=refusal)
        raise


def _meet(
    machine: Machine,
    engine_config: EngineConfig,
    *,
    step: int = 0,
    log: Path | None = None,
    refusal: HarlError | None = None,
) -> None:
    """Join this rank to the others. Raises HarlError on all of them if one must not go on.

    step: where this rank would start from. log: file for what DeepSpeed logs on rank 0.
    """
    from harl_fast.engine import deepspeed as ds

    ds.start(machine, timeout_minutes=engine_config.file.harl_fast.timeout_minutes, log=log)
    if ds.any_rank(refusal is not None):
        raise refusal or CheckpointError("rank 0 cannot have the run folder; its message says why")
    if ds.max_over_ranks(step) != -ds.max_over_ranks(-step):
        raise CheckpointError(
            f"the ranks found different checkpoints, this one of step {step}: another job or a "
            f"slow file server changed the folder meanwhile. Start again"
        )


def prepare(start: Start, machine: Machine, *, loader: BetonLoader, data: Path) -> TrainState:
    """Build what the rank trains with, and note the start in the run folder.

    Raises HarlError; CheckpointError if the folder cannot be written to.
    """
    from harl_fast.engine.resume import check_data
    from harl_fast.engine.trainer import build

    state = build(
        start.config,
        start.engine_config,
        machine,
        loader=loader,
        weights=start.weights,
        resume=start.resume,
    )
    if (record := start.record) is not None:
        loader.load_state_dict(record.position)  # refuses another order of samples
        if record.config.epochs != start.config.epochs:
            before = record.config.epochs
            start.notes.append(state.schedule.extension_text(record.step, epochs_before=before))
    if machine.rank == 0:
        facts = {"count": loader.manifest.count, "beton_sha256": loader.manifest.beton_sha256}
        begun = start.folder.config.exists()
        # Before a first checkpoint, which would know the container, provenance.json does.
        known = read_provenance(start.folder.provenance).data if begun else {}
        check_data(known.get("beton_sha256"), loader.manifest.beton_sha256)
        note_beginning(start, facts, ranks=machine.ranks, manifest=data / "train.json")
    return state


def note_beginning(start: Start, data: dict[str, Any], *, ranks: int, manifest: Path) -> None:
    """Write what a start writes before its first step. Raises CheckpointError if it cannot be."""
    folder = start.folder
    for text in start.notes:
        to_stderr(text)
    with required(folder.path):
        begin(folder, step=start.step)
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


def _leave(folder: RunFolder, *, reason: str) -> None:
    """Note that the start was given up."""
    from harl_fast.engine.checkpoint.format import latest_step
    from harl_fast.engine.monitor.runjson import RunJson
    from harl_fast.engine.monitor.sink import RunInfo

    step = latest_step(folder.checkpoints)
    to_stderr(f"stopped by {reason} before the first step")
    mark(folder.preempted, step=step, reason=reason)
    status = RunJson(RunInfo(folder, first_step=step), SideOutputs(to_stderr))
    status.state("preempted", reason)
