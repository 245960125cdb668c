"""A pretraining run from its command line's values to its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harl_fast.config import RunConfig
from harl_fast.engine.dsconfig import EngineConfig, read_engine_file, settle
from harl_fast.engine.machine import Machine, check_machine, leader_reports, this_machine
from harl_fast.engine.provenance import note_start, now, read_provenance
from harl_fast.engine.runfolder import RunFolder, begin, open_run_folder, run_config, write_configs
from harl_fast.engine.stop import StopSignal
from harl_fast.files import write_json

if TYPE_CHECKING:
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
        if resume and not (folder.checkpoints / "latest").is_file():
            # Killed before its first checkpoint: the same run again, from its beginning.
            resume, init_from = False, _first_source(folder)
        return _train(
            config,
            engine_config,
            machine,
            data=data,
            folder=folder,
            resume=resume,
            init_from=init_from,
            quiet=quiet,
            sheet=sheet,
            time_limit_s=time_limit_s,
            stop=stop,
        )


def _train(
    config: RunConfig,
    engine_config: EngineConfig,
    machine: Machine,
    *,
    data: Path,
    folder: RunFolder,
    resume: bool,
    init_from: Path | None,
    quiet: bool,
    sheet: Sheet | None,
    time_limit_s: float | None,
    stop: StopSignal,
) -> int:
    # FFCV, numba and DeepSpeed take seconds to import; refusals before this need not wait for them.
    from harl_fast.engine import ds
    from harl_fast.engine.build import build, build_loader
    from harl_fast.engine.checkpoint import open_checkpoint
    from harl_fast.engine.loop import INTERRUPTED, Pretraining

    source = folder.path if resume else init_from
    weights = None if source is None else open_checkpoint(source)
    record = weights.record if resume and weights is not None else None
    loader = build_loader(
        config, engine_config, machine, data=data, epoch=record.epoch if record else 0
    )
    ds.start(machine, timeout_minutes=engine_config.file.harl_fast.timeout_minutes)
    parts = build(config, engine_config, machine, loader=loader, weights=weights, resume=resume)
    if record and record.loader:
        loader.load_state_dict(record.loader)  # refuses another order of samples
    step, skipped = (record.step, record.skipped) if record else (0, 0)
    if machine.rank == 0:
        begin(folder, step=step)
        note_start(
            folder.provenance,
            manifest=data / "train.json",
            data={"count": loader.manifest.count, "beton_sha256": loader.manifest.beton_sha256},
            step=step,
            ranks=machine.ranks,
            source=init_from,
        )
        write_configs(folder, config, engine_config)
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
        write_json(marker, {"step": ending.step, "reason": ending.reason, "time": now()})
    return code


def _first_source(folder: RunFolder) -> Path | None:
    """Return where the run's first start took its weights from."""
    starts = read_provenance(folder.provenance).get("starts", [])
    source = starts[0]["init_from"] if starts else None
    return None if source is None else Path(source)
