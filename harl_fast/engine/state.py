"""The objects of a running pretraining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from harl_fast.config import RunConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.deepspeed import Engine
from harl_fast.engine.machine import Machine
from harl_fast.engine.precision import LossScale
from harl_fast.engine.schedule import Schedule
from harl_fast.model.harl import HARL


@dataclass(frozen=True)
class TrainState:
    """Everything that one rank trains with, built by `trainer.build`."""

    config: RunConfig
    engine_config: EngineConfig
    machine: Machine
    loader: BetonLoader
    photometric: Photometric | None
    """None where the loader colours the views itself."""
    harl: HARL
    """The module without wrapping; its parameters are those that the engine moves."""
    optimizer: Optimizer
    engine: Engine
    scale: LossScale | None
    """Under fp16 only."""
    schedule: Schedule

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.machine.device
