"""A pretraining run from its command line's values to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harl_fast.config import RunConfig
from harl_fast.engine.dsconfig import EngineConfig, read_engine_file, settle
from harl_fast.engine.machine import Machine, check_machine, leader_reports, this_machine
from harl_fast.engine.provenance import note_start, read_provenance
from harl_fast.engine.runfolder import (
    RunFolder,
    begin,
    mark,
    open_run_folder,
    run_config,
    write_configs,
)
from harl_fast.engine.stop import Leaving, StopSignal
from harl_fast.files import check_output

if TYPE_CHECKING:
    from harl_fast.engine.parts import Parts
    from harl_fast.engine.watch import Sheet


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
    quiet: bool = False,
    sheet: Sheet | None = None,
    time_limit_s: float | None = None,
) -> int:
    """Run one rank of a pretraining and return its exit code, see `Pretraining.run`.

    Configurations, data and folders are refused before the ranks meet. See launch/pretrain.py for
    the arguments. Raises HarlError.
    """
    machine = this_machine()
    with leader_reports(machine), StopSignal() as stop:
        file = read_engine_file(engine_file, overrides=engine_overrides)
        check_machine(file.harl_fast, machine, source=str(engine_file))
        engine_config = settle(file, ranks=machine.ranks, source=str(engine_file))
        folder = open_run_folder(run, resume=resume)
        config = run_config(folder, name=config_name, overrides=config_overrides, resume=resume)
        if machine.rank == 0:
            check_output(folder.path, option="--run", folder=True)
        if resume and not (folder.checkpoints / "latest").is_file():
            # Killed before its first checkpoint: the same run again, from its beginning.
            resume, init_from = False, _first_source(folder)
        start = _Start(config, engine_config, machine, data, folder, resume, init_from)
        try:
            stop.starting = True
            parts, step, skipped = _prepare(start)
            stop.starting = False
        except Leaving:
            return _leave(folder, machine, reason=stop.name)
        # DeepSpeed takes seconds to import; refusals above need not wait for it.
        from harl_fast.engine import ds
        from harl_fast.engine.loop import INTERRUPTED, Pretraining

        training = Pretraining(
            parts,
            folder,
            step=step,
            skipped=skipped,
            quiet=quiet,
            sheet=sheet,
            time_limit_s=time_limit_s,
            stop=stop,
        )
        code = training.run()
        ds.stop()
        ending = training.ending
        if machine.rank == 0 and ending is not None and code in (0, INTERRUPTED):
            marker = folder.finished if ending.done else folder.preempted
            mark(marker, step=ending.step, reason=ending.reason)
    return code


@dataclass(frozen=True)
class _Start:
    """What a start was asked to do, checked."""

    config: RunConfig
    engine_config: EngineConfig
    machine: Machine
    data: Path
    folder: RunFolder
    resume: bool
    init_from: Path | None


def _prepare(start: _Start) -> tuple[Parts, int, int]:
    """Return the parts, the steps done, and how many of these had no effect; note the start."""
    # FFCV, numba and DeepSpeed take seconds to import.
    from harl_fast.engine import ds
    from harl_fast.engine.build import build, build_loader
    from harl_fast.engine.checkpoint import open_checkpoint

    config, engine_config, machine, folder = (
        start.config,
        start.engine_config,
        start.machine,
        start.folder,
    )
    source = folder.path if start.resume else start.init_from
    weights = None if source is None else open_checkpoint(source)
    record = weights.record if start.resume and weights is not None else None
    epoch = record.epoch if record else 0
    loader = build_loader(config, engine_config, machine, data=start.data, epoch=epoch)
    ds.start(machine, timeout_minutes=engine_config.file.harl_fast.timeout_minutes)
    parts = build(
        config, engine_config, machine, loader=loader, weights=weights, resume=start.resume
    )
    if record and record.loader:
        loader.load_state_dict(record.loader)  # refuses another order of samples
    step, skipped = (record.step, record.skipped) if record else (0, 0)
    if machine.rank == 0:
        begin(folder, step=step)
        note_start(
            folder.provenance,
            manifest=start.data / "train.json",
            data={"count": loader.manifest.count, "beton_sha256": loader.manifest.beton_sha256},
            step=step,
            ranks=machine.ranks,
            source=start.init_from,
        )
        write_configs(folder, config, engine_config)
    return parts, step, skipped


def _leave(folder: RunFolder, machine: Machine, *, reason: str) -> int:
    """Note that the start was given up; return the exit code."""
    latest = folder.checkpoints / "latest"
    step = int(latest.read_text("utf-8").strip().partition("-")[2]) if latest.is_file() else 0
    if machine.rank == 0:
        print(f"stopped by {reason} before the first step", file=sys.stderr)
        mark(folder.preempted, step=step, reason=reason)
    if machine.ranks > 1:
        os._exit(0)  # an orderly end would wait for ranks that may wait for this one
    return 0


def _first_source(folder: RunFolder) -> Path | None:
    """Return where the run's first start took its weights from."""
    starts = read_provenance(folder.provenance).get("starts", [])
    source = starts[0]["init_from"] if starts else None
    return None if source is None else Path(source)
