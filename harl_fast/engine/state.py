"""The objects of a running training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from harl_fast.config import RunConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.machine import Machine
from harl_fast.engine.precision import Autocast, LossScale
from harl_fast.engine.schedule import LrSchedule, Schedule
from harl_fast.finetuning import FinetuneConfig
from harl_fast.model.harl import HARL
from harl_fast.optim.build import init_momentum


@dataclass(frozen=True)
class LoopState(ABC):
    """Everything that one rank trains with, whatever it trains."""

    engine_config: EngineConfig
    machine: Machine
    loader: BetonLoader
    photometric: Photometric | None
    """None where the loader colours the views itself."""
    optimizer: Optimizer
    engine: ds.Engine
    scale: LossScale | None
    """Under fp16 only."""
    schedule: LrSchedule
    config: RunConfig | FinetuneConfig

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.machine.device

    @property
    @abstractmethod
    def module(self) -> Any:
        """The module without wrapping; its parameters are those that the engine moves.

        Its attribute ``watched`` asks it for figures that cost time.
        """

    @property
    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """All modules that a checkpoint holds, by the prefix of their tensors there."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """The fields of a checkpoint's record that say what is trained, on which data."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is trained, in a few words for the log's first line."""

    @property
    @abstractmethod
    def gentler(self) -> str:
        """What to set for a run that diverged."""


@dataclass(frozen=True)
class TrainState(LoopState):
    """Everything that one rank pretrains with, built by `trainer.build`."""

    schedule: Schedule
    config: RunConfig
    harl: HARL
    """The module without wrapping; its parameters are those that the engine moves."""

    @property
    def module(self) -> HARL:
        """The method."""
        return self.harl

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The online and the target network."""
        return {"online": self.harl, "target": self.harl.target}

    @property
    def about(self) -> dict[str, Any]:
        """The configuration, and which container."""
        manifest = self.loader.manifest
        data = {"count": manifest.count, "beton_sha256": manifest.beton_sha256}
        return {"config": self.config, "data": data}

    @property
    def subject(self) -> str:
        """The backbone's name."""
        return self.config.model.arch

    @property
    def gentler(self) -> str:
        """What to set for a run that diverged."""
        return (
            "a lower optim.lr or a longer optim.warmup_epochs, from that checkpoint by --init-from "
            "if wanted"
        )


def on_engine(
    module: nn.Module, optimizer: Optimizer, *, engine_config: EngineConfig, machine: Machine
) -> tuple[ds.Engine, LossScale | None]:
    """Return DeepSpeed's engine around a module, and the loss scale that fp16 needs.

    The module is on its device, with contiguous weights. Raises ConfigError.
    """
    autocast = Autocast(module, precision=engine_config.precision)
    engine = ds.initialize(autocast, optimizer, config=engine_config.deepspeed())
    if engine_config.stage == 0:
        # Under ZeRO weights are slices of one flat buffer and keep its layout.
        module.to(memory_format=torch.channels_last)
    init_momentum(optimizer)
    scale = None
    if engine_config.precision == "fp16":
        scale = LossScale(engine_config.file.fp16, device=machine.device)
        scale.attach(optimizer)
    return engine, scale
