"""What is pretraining's own: the objects of a run, the loss of a step and what follows it.

The order of epochs and steps is `loop`'s. `pretrain.pretrain` opens the run and calls this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harl_fast.config import RunConfig
from harl_fast.data.loader import Batch, BetonLoader
from harl_fast.engine.checkpoint.format import Checkpoint
from harl_fast.engine.compilation import compile_networks
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.initial import EncoderFile
from harl_fast.engine.loop import INTERRUPTED, UNSAVED, Loop, RunResult, Stepping
from harl_fast.engine.machine import Machine, keep_freed_memory
from harl_fast.engine.monitoring import PretrainMonitor, Sheet
from harl_fast.engine.networks import build_model
from harl_fast.engine.resume import check_position
from harl_fast.engine.schedule import Schedule
from harl_fast.engine.snapshot import load_networks, load_rest
from harl_fast.engine.state import TrainState, on_engine
from harl_fast.engine.stop import StopSignal
from harl_fast.engine.views import (
    build_photometric,
    colouring,
    sizes_in,
    sizes_text,
    view_geometry,
    views_at,
)
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.optim.build import build_optimizer
from harl_fast.rng import RANK, stream
from harl_fast.runfiles import RunFolder

__all__ = ["INTERRUPTED", "UNSAVED", "RunResult", "Stepper", "Trainer", "build"]


def build(
    config: RunConfig,
    engine_config: EngineConfig,
    machine: Machine,
    *,
    loader: BetonLoader,
    weights: Checkpoint | EncoderFile | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainState:
    """Return what one rank trains with; `deepspeed.start` must have been called.

    loader: from `build_loader`. weights: where a new run's networks start from. checkpoint: of
    this run, to go on from. Raises ConfigError or CheckpointError.
    """
    batch_global = engine_config.batches.batch_global
    schedule = Schedule.of(config, steps_per_epoch=loader.steps, batch_global=batch_global)
    if checkpoint is not None:
        check_position(checkpoint, schedule, beton_sha256=loader.manifest.beton_sha256)
        weights = checkpoint
    # torch's own generator, for dropout and the like: seeded from the run, saved with it.
    torch.manual_seed(int(stream(config.seed, 0, machine.rank, 0, RANK)))
    if machine.device.type == "cpu":
        keep_freed_memory()
    harl = build_model(config).to(machine.device)
    if isinstance(weights, EncoderFile):
        weights.load_into(harl)
    elif weights is not None:
        load_networks({"online": harl, "target": harl.target}, weights)
    optimizer = build_optimizer(config.optim, harl)
    engine, scale = on_engine(harl, optimizer, engine_config=engine_config, machine=machine)
    if config.model.compile:
        compile_networks(harl, sizes=len(sizes_in(config)))
    photometric = build_photometric(config, machine)
    state = TrainState(
        config=config,
        engine_config=engine_config,
        machine=machine,
        loader=loader,
        photometric=photometric,
        harl=harl,
        optimizer=optimizer,
        engine=engine,
        scale=scale,
        schedule=schedule,
    )
    if checkpoint is not None:
        load_rest(state, checkpoint)
    return state


class Stepper(Stepping):
    """The method's steps: views in, online network moved, target following."""

    state: TrainState

    def __init__(self, state: TrainState, *, step: int = 0, skipped: int = 0) -> None:
        super().__init__(state, step=step, skipped=skipped)
        self._target, self._online = ema_pairs(state.harl.target, state.harl)

    def _loss(self, batch: Batch, *, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.state.schedule.at(self.step)
        views, cells = self._inputs(batch, epoch=epoch)
        loss, figures = self.state.engine(views, cells, alpha=settings.alpha, beta=settings.beta)
        return loss, figures

    def _moved(self, applied: Tensor) -> None:
        tau = self.state.schedule.at(self.step).tau
        ema_update(self._target, self._online, tau=tau, applied=applied)

    def _inputs(self, batch: Batch, *, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        cells = self._transfer(batch.cells)
        return self._views(batch, epoch=epoch), cells


class Trainer(Loop):
    """A pretraining from a step to its end, see `Loop`."""

    state: TrainState
    stepper: Stepper

    def __init__(
        self,
        state: TrainState,
        folder: RunFolder,
        *,
        step: int = 0,
        skipped: int = 0,
        quiet: bool = False,
        sheet: Sheet | None = None,
        run_id: str = "",
        time_limit_s: float | None = None,
        stop: StopSignal | None = None,
        still_held: Callable[[], bool] = lambda: True,
    ) -> None:
        stepper = Stepper(state, step=step, skipped=skipped)
        super().__init__(
            state,
            folder,
            stepper=stepper,
            monitor=PretrainMonitor(
                state, stepper.meter, folder, step=step, quiet=quiet, sheet=sheet
            ),
            run_id=run_id,
            time_limit_s=time_limit_s,
            stop=stop,
            still_held=still_held,
        )

    def _prepare_epoch(self, epoch: int) -> None:
        """Give loader and colours the epoch's view sizes; announce a change."""
        state, config = self.state, self.state.config
        if state.photometric is not None:
            state.photometric.policies = views_at(config, epoch=epoch)
        views = view_geometry(config, epoch=epoch)
        if views == list(state.loader.views):
            return
        colour = colouring(config, state.device, epoch=epoch)
        seconds = state.loader.set_views(views, colour=colour)
        again = "; torch.compile will compile again for them" if config.model.compile else ""
        self.sinks.info(f"epoch {epoch + 1}: views of {sizes_text(views)} ({seconds:.1f} s){again}")
