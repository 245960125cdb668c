"""A pretraining run from its command line's values to its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harl_fast.engine.dsconfig import read_engine_file, settle
from harl_fast.engine.machine import check_machine, leader_reports, this_machine
from harl_fast.engine.runfolder import open_run_folder, run_config, trim_metrics, write_configs

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
) -> int:
    """Run one rank of a pretraining and return its exit code.

    Configurations, data and folders are refused before the ranks meet. See launch/pretrain.py for
    the arguments. Raises HarlError.
    """
    machine = this_machine()
    with leader_reports(machine):
        file = read_engine_file(engine_file, overrides=engine_overrides)
        check_machine(file.harl_fast, machine, source=str(engine_file))
        engine_config = settle(file, ranks=machine.ranks, source=str(engine_file))
        folder = open_run_folder(run, resume=resume)
        config = run_config(folder, name=config_name, overrides=config_overrides, resume=resume)
        # FFCV, numba and DeepSpeed take seconds to import; refusals above need not wait for them.
        from harl_fast.engine import ds
        from harl_fast.engine.build import build, build_loader
        from harl_fast.engine.checkpoint import open_checkpoint
        from harl_fast.engine.loop import Pretraining

        source = folder.path if resume else init_from
        weights = None if source is None else open_checkpoint(source)
        epoch = weights.record.epoch if resume and weights is not None else 0
        loader = build_loader(config, engine_config, machine, data=data, epoch=epoch)
        ds.start(machine, timeout_minutes=file.harl_fast.timeout_minutes)
        parts = build(config, engine_config, machine, loader=loader, weights=weights, resume=resume)
    step = skipped = 0
    if resume and weights is not None:
        step, skipped = weights.record.step, weights.record.skipped
    if machine.rank == 0:
        write_configs(folder, config, engine_config)
        trim_metrics(folder, step=step)
    run_ = Pretraining(parts, folder, step=step, skipped=skipped, quiet=quiet, sheet=sheet)
    code = run_.run()
    ds.stop()
    return code
