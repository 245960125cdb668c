"""The objects of a running pretraining, and their state as named tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harl_fast.config import RunConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.photometric import Photometric
from harl_fast.engine.checkpoint import Checkpoint
from harl_fast.engine.course import Course
from harl_fast.engine.ds import (
    Engine,
    average_over_ranks,
    load_optimizer_state,
    optimizer_state,
)
from harl_fast.engine.dsconfig import EngineConfig
from harl_fast.engine.machine import Machine
from harl_fast.engine.precision import LossScale
from harl_fast.errors import CheckpointError
from harl_fast.model.harl import HARL


@dataclass(frozen=True)
class Parts:
    """Everything that one rank trains with."""

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
    course: Course

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.machine.device


def collect_state(parts: Parts) -> dict[str, Tensor]:
    """Return the whole state for `checkpoint.write_checkpoint`; on ranks other than 0, nothing.

    All ranks must call it. Running statistics of BatchNorm, which differ by rank unless synced,
    are replaced by their mean over ranks first, here and in the networks.
    """
    networks = {"online": parts.harl, "target": parts.harl.target}
    average_over_ranks(
        [b for network in networks.values() for b in network.buffers() if b.is_floating_point()]
    )
    found = {
        f"optim.{name}": tensor
        for name, tensor in optimizer_state(parts.engine, parts.optimizer, _names(parts)).items()
    }
    if parts.machine.rank > 0:
        return {}
    for prefix, network in networks.items():
        found |= {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}
    if parts.scale is not None:
        found |= {f"scale.{name}": tensor for name, tensor in parts.scale.state().items()}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in found.items()}


def load_networks(harl: HARL, checkpoint: Checkpoint) -> None:
    """Set online and target network from a checkpoint; do it before the engine exists.

    ZeRO then copies its fp32 shards from the right weights. Raises CheckpointError naming what
    differs if the checkpoint is of another model.
    """
    modules: list[tuple[str, nn.Module]] = [("online", harl), ("target", harl.target)]
    for prefix, module in modules:
        try:
            module.load_state_dict(checkpoint.tensors(prefix))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.path} is of another model than section model describes: {reason}. "
                f"Use the configuration beside its checkpoints folder"
            ) from error


def load_rest(parts: Parts, checkpoint: Checkpoint) -> None:
    """Set the optimizer's state and the loss scale from a checkpoint, once the engine exists."""
    state = checkpoint.tensors("optim")
    try:
        load_optimizer_state(parts.engine, parts.optimizer, _names(parts), state=state)
    except KeyError as error:
        raise CheckpointError(
            f"{checkpoint.path} has no optimizer state {error}; start a new run from its weights "
            f"with --init-from"
        ) from error
    scale = checkpoint.tensors("scale")
    if parts.scale is not None and scale:
        parts.scale.load(scale)


def _names(parts: Parts) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in parts.harl.named_parameters()}
