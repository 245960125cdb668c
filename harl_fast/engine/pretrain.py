"""A pretraining run from its command line's values to its exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harl_fast.engine.config import EngineConfig, run_engine_file, settle
from harl_fast.engine.machine import Machine, check_machine
from harl_fast.engine.provenance import read_provenance
from harl_fast.engine.session import Job, note_beginning, serve
from harl_fast.engine.stop import StopSignal
from harl_fast.runfiles import RunFolder

if TYPE_CHECKING:
    from harl_fast.data.loader import BetonLoader
    from harl_fast.engine.loop import Loop
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
    job = _Pretraining(
        engine_file=engine_file,
        engine_overrides=engine_overrides,
        config_name=config_name,
        config_overrides=config_overrides,
        data=data,
        run=run,
        resume=resume,
        init_from=init_from,
        allow_change=allow_change,
        quiet=quiet,
        sheet=sheet,
        time_limit_s=time_limit_s,
    )
    return serve(job, run=run, resume=resume)


@dataclass(kw_only=True)
class _Pretraining(Job):
    """The command line's values, and what becomes of them."""

    engine_file: Path
    engine_overrides: Sequence[str]
    config_name: str | None
    config_overrides: Sequence[str]
    data: Path
    run: Path
    resume: bool
    init_from: Path | None
    allow_change: Sequence[str]
    quiet: bool
    sheet: Sheet | None
    time_limit_s: float | None

    def settle(self, machine: Machine) -> EngineConfig:
        """Return the engine's configuration."""
        own = RunFolder(self.run).engine if self.resume else None
        file, self._told = run_engine_file(
            self.engine_file, own=own, overrides=self.engine_overrides, ranks=machine.ranks
        )
        check_machine(file.harl_fast, machine, source=str(self.engine_file))
        return settle(file, ranks=machine.ranks, source=str(self.engine_file))

    def decide(self, folder: RunFolder, engine_config: EngineConfig, machine: Machine) -> int:
        """Settle what the start does and open the container; return the steps done before."""
        # FFCV, numba and DeepSpeed take seconds, which earlier refusals need not wait for.
        from harl_fast.engine.start import Request, decide
        from harl_fast.engine.views import build_loader

        request = Request(
            self.config_name,
            self.config_overrides,
            self.resume,
            self.init_from,
            self.allow_change,
        )
        start = decide(folder, engine_config, request)
        start.notes.extend([self._told] if self._told else [])
        self._loader = build_loader(
            start.config, engine_config, machine, data=self.data, epoch=start.epoch
        )
        self._start = start
        return start.step

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all ranks."""
        from harl_fast.engine.resume import settings_sha256

        weights = self._start.weights
        return {
            "configurations": settings_sha256(self._start.config),
            "training sets": self._loader.manifest.beton_sha256,
            "weights to start from": "" if weights is None else weights.sha256,
        }

    def prepare(self, machine: Machine) -> TrainState:
        """Build what the rank trains with, and note the start in the run folder."""
        return prepare(self._start, machine, loader=self._loader, data=self.data)

    def loop(  # type: ignore[override]  # of what `prepare` returned
        self, state: TrainState, *, stop: StopSignal, still_held: Callable[[], bool]
    ) -> Loop:
        """Return the training."""
        from harl_fast.engine.trainer import Trainer

        start = self._start
        return Trainer(
            state,
            start.folder,
            step=start.step,
            skipped=start.skipped,
            run_id=start.run_id,
            quiet=self.quiet,
            sheet=self.sheet,
            time_limit_s=self.time_limit_s,
            stop=stop,
            still_held=still_held,
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
