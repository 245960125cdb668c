"""A pretraining run from its command line's values to its exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harl_fast.engine.config import EngineConfig
from harl_fast.engine.machine import Machine
from harl_fast.engine.runfolder import run_config
from harl_fast.engine.session import Training, leave, note_beginning, serve
from harl_fast.engine.stop import StopSignal
from harl_fast.provenance import read_provenance
from harl_fast.runfiles import RunFolder

if TYPE_CHECKING:
    from harl_fast.data.loader import BetonLoader
    from harl_fast.engine.loop import Loop
    from harl_fast.engine.monitoring import Sheet
    from harl_fast.engine.start import Start
    from harl_fast.engine.state import TrainState


def pretrain(**settings: Any) -> int:
    """Run one rank of a pretraining and return its exit code, see `Loop.run`.

    settings: the fields of `Pretraining`. Configurations, data and folders are refused before the
    ranks meet. Raises HarlError.
    """
    code = serve([Pretraining(**settings)])
    leave()
    return code


@dataclass(kw_only=True)
class Pretraining(Training["TrainState"]):
    """A pretraining: the command line's values and the objects built from them."""

    config_name: str | None
    config_overrides: Sequence[str] = ()
    init_from: Path | None = None
    sheet: Sheet | None = None

    def settle(self, machine: Machine) -> EngineConfig:
        """Return the engine's configuration."""
        if self.stage_to is not None and not (self.resume and self.config_name is None):
            # `decide` does so, too; copying may take long, and mistakes need not wait for it.
            name, overrides = self.config_name, self.config_overrides
            run_config(RunFolder(self.run), name=name, overrides=overrides, resume=False)
        engine_config, self._told = self._settled(machine)
        return engine_config

    def decide(self, folder: RunFolder, engine_config: EngineConfig, machine: Machine) -> Start:
        """Settle what the start does and open the container; return the start."""
        # FFCV, numba and DeepSpeed take seconds, which earlier refusals need not wait for.
        from harl_fast.engine.start import StartRequest, decide
        from harl_fast.engine.views import build_loader

        request = StartRequest(
            self.config_name,
            self.config_overrides,
            self.resume,
            self.init_from,
            self.allow_change,
        )
        start = decide(folder, engine_config, request)
        start.notes.extend(self._told)
        self._loader = build_loader(
            start.config, engine_config, machine, data=self.data, epoch=start.epoch
        )
        self._start = start
        return start

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

    def loop(self, state: TrainState, *, stop: StopSignal, still_held: Callable[[], bool]) -> Loop:
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
    from harl_fast.engine.resume import check_data, check_weights
    from harl_fast.engine.trainer import build

    state = build(
        start.config,
        start.engine_config,
        machine,
        loader=loader,
        weights=start.weights,
        checkpoint=start.checkpoint,
    )
    if (record := start.record) is not None:
        loader.load_state_dict(record.position)  # refuses another order of samples
        if record.config.epochs != start.config.epochs:
            before = record.config.epochs
            start.notes.append(state.schedule.extension_text(record.step, epochs_before=before))
    if machine.rank == 0:
        facts = {"count": loader.manifest.count, "beton_sha256": loader.manifest.beton_sha256}
        begun = start.folder.config.exists()
        # Before a first checkpoint, which would know these, provenance.json does.
        known = read_provenance(start.folder.provenance).data if begun else {}
        check_data(known.get("beton_sha256"), loader.manifest.beton_sha256)
        if start.weights is not None:
            facts["weights_sha256"] = start.weights.sha256
            check_weights(start.weights.path, start.weights.sha256, known.get("weights_sha256"))
        note_beginning(start, facts, ranks=machine.ranks, manifest=data / "train.json")
    return state
