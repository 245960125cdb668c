"""The only file that imports DeepSpeed: starting, stopping, and the flat layout of ZeRO 1 and 2."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read at import; otherwise it warns

import deepspeed
from deepspeed.utils import groups as ds_groups
from deepspeed.utils import logger as ds_logger

from harl_fast import collectives
from harl_fast.engine.launchers import INTERFACE, interface_to
from harl_fast.engine.machine import Machine
from harl_fast.errors import ConfigError
from harl_fast.files import to_stderr
from harl_fast.optim.lars import LARS
from harl_fast.optim.layout import GroupLayout, Segment, flat_layout
from harl_fast.side import append_whole

Engine: TypeAlias = deepspeed.DeepSpeedEngine


def start(
    machine: Machine,
    *,
    timeout_minutes: float,
    meeting_minutes: float | None = None,
    log: Path | None = None,
) -> None:
    """Join this rank to the others; call once per process.

    timeout_minutes: longest wait for another rank in any collective before this rank fails.
    meeting_minutes: the same until all are there, and over the devices; left out, no other.
    log: file for DeepSpeed's own lines of rank 0; the terminal shows its errors only.
    """
    _log_to(log if machine.rank == 0 else None)
    # A shared-memory collective that only DeepSpeed's inference uses: on CPU it would be compiled
    # for 21 s at the first start and leave 66 MB per rank in /dev/shm at each.
    deepspeed.ops.__compatible_ops__ = {}
    if machine.gpus:
        torch.cuda.set_device(machine.device)
        # Sizes hardly ever change: the fastest convolutions are worth a search.
        torch.backends.cudnn.benchmark = True
    if machine.several and INTERFACE not in os.environ:
        # Left alone, gloo takes what this machine's own name means: the loopback, where that is how
        # /etc/hosts has it. Launchers do not pass the variable on to other machines.
        os.environ[INTERFACE] = interface_to(os.environ["MASTER_ADDR"])
    limit = timedelta(minutes=timeout_minutes)
    meeting = timedelta(minutes=meeting_minutes or timeout_minutes)
    try:
        deepspeed.init_distributed(timeout=meeting, verbose=False)
    except dist.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConfigError(
            f"the ranks cannot meet at {place} ({error}). If another job on this machine holds "
            f"that port, give this one its own: deepspeed --master_port 29501 launch/pretrain.py"
        ) from error
    if not machine.gpus:  # ZeRO gathers the weights by what DeepSpeed keeps here, at every step
        deepspeed.comm.comm.cdb.all_gather_function = collectives.gather_in_place
    # DeepSpeed's own copy of the world group would keep torch's default time limit.
    ds_groups._WORLD_GROUP = dist.new_group(range(machine.ranks), timeout=limit)
    collectives.use_host_group(dist.new_group(range(machine.ranks), timeout=limit, backend="gloo"))


def started() -> bool:
    """Return whether this rank has joined the others."""
    return dist.is_initialized()


def stop() -> None:
    """Leave after all ranks have finished.

    Groups of several CPU ranks are left to the end of the process: taking them down, gloo aborts
    some exits after all work is done ("terminate called without an active exception").
    """
    if dist.is_initialized():
        collectives.wait_for_all()
        if dist.get_world_size() == 1 or torch.cuda.is_available():
            ds_groups._WORLD_GROUP = None
            dist.destroy_process_group()


def initialize(module: nn.Module, optimizer: Optimizer, *, config: dict[str, Any]) -> Engine:
    """Return the engine around ``module``; a LARS is told how its layers lie in ZeRO's shards.

    config: from `EngineConfig.deepspeed`. Rank 0's parameters are sent to all ranks.
    Raises ConfigError if a weight is not contiguous: DeepSpeed views weights as bytes, and from
    stage 1 on they are slices of one flat buffer.
    """
    for name, parameter in module.named_parameters():
        if not parameter.is_contiguous():
            raise ConfigError(
                f"parameter {name} has strides {parameter.stride()}: build the model contiguous "
                f"and convert it to channels_last after initialize, at stage 0 only"
            )
    engine: Engine = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
    if dist.get_world_size() == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # it would copy all gradients out and back
    if isinstance(optimizer, LARS) and engine.zero_optimization_stage() > 0:
        optimizer.bind([group.layout() for group in flat_groups(engine)])
    return engine


@dataclass(frozen=True)
class FlatGroup:
    """One parameter group under ZeRO 1 or 2: its tensors end to end, cut evenly over the ranks."""

    parameters: list[nn.Parameter]
    shard: Tensor
    """(N,) float32, this rank's part: the one tensor that the optimizer sees."""
    process_group: Any  # a torch ProcessGroup, whose class moves between releases

    def layout(self) -> GroupLayout:
        """Return where each parameter lies in this rank's shard."""
        size = self.shard.numel()
        start = dist.get_rank(self.process_group) * size
        numels = [parameter.numel() for parameter in self.parameters]
        return flat_layout(numels, start=start, stop=start + size, process_group=self.process_group)

    def gather(self, part: Tensor) -> list[Tensor]:
        """Return ``part``, shaped like the shard, as whole tensors shaped like the parameters.

        All ranks of the group must call it.
        """
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather(parts, part, group=self.process_group)
        flat = torch.cat(parts)
        sizes = [parameter.numel() for parameter in self.parameters]
        pieces = flat[: sum(sizes)].split(sizes)
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def scatter(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return this rank's part of whole tensors: the inverse of `gather`, without traffic."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        size = self.shard.numel()
        part = flat[dist.get_rank(self.process_group) * size :][:size]
        whole = torch.zeros_like(self.shard)
        whole[: part.numel()] = part
        return whole


def flat_groups(engine: Engine) -> list[FlatGroup]:
    """Return the flat layout of each parameter group; checked against DeepSpeed's own mapping."""
    zero = engine.optimizer
    assert (
        not zero.round_robin_gradients and not zero.parameter_alignment
    )  # refused in `deepspeed_keys`
    found = []
    for index, parameters in enumerate(zero.bit16_groups):
        group = FlatGroup(
            parameters=list(parameters),
            shard=zero.single_partition_of_fp32_groups[index],
            process_group=zero.real_dp_process_group[index],
        )
        places = [
            (number, parameter._hp_mapping.hp_fragment_address)
            for number, parameter in enumerate(parameters)
            if parameter._hp_mapping is not None
        ]
        mapped = [Segment(place.start, place.numel, number) for number, place in places]
        if mapped != group.layout().segments:
            raise RuntimeError(
                f"DeepSpeed {deepspeed.__version__} lays parameter group {index} out in another "
                f"order than 0.19.8; LARS would take wrong norms. Install deepspeed==0.19.8"
            )
        found.append(group)
    return found


def gradient_norm(engine: Engine) -> Tensor:
    """Return on the device the norm of the whole averaged gradient, 0-d, equal on all ranks.

    Not finite if any gradient is not. Call between backward and step, at an accumulation
    boundary; all ranks must. Under fp16 it is the norm of the scaled gradient.
    """
    if engine.zero_optimization_stage() == 0:
        # The optimizer's lists: walking the modules takes a tenth of the time of the norms.
        groups = engine.optimizer.param_groups
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm: Tensor = torch.stack(torch._foreach_norm(grads)).norm()
        return norm
    zero = engine.optimizer
    parts = [g for index in range(len(zero.bit16_groups)) for g in zero.averaged_gradients[index]]
    norms = torch.stack(torch._foreach_norm(parts)) if parts else torch.zeros(1)
    square = norms.square().sum().to(dtype=torch.float32, device=zero.device)[None]
    dist.all_reduce(square)
    return square[0].sqrt()


def optimizer_state(
    engine: Engine, optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """Return the optimizer's state as whole tensors named ``<state>.<parameter>``, at any stage.

    names: of all parameters. All ranks must call it. Scalar states are repeated per parameter.
    """
    found: dict[str, Tensor] = {}
    if engine.zero_optimization_stage() == 0:
        for parameter, name in names.items():
            for key, value in optimizer.state[parameter].items():
                found[f"{key}.{name}"] = torch.as_tensor(value).detach()
        return found
    # DeepSpeed's safe_get_full_optimizer_state links the state after its first group's first step
    # only, so it cannot see the other groups of an optimizer that makes its state in step().
    for group in flat_groups(engine):
        for key, value in optimizer.state[group.shard].items():
            value = torch.as_tensor(value).detach()
            whole = value.shape == group.shard.shape
            tensors = group.gather(value) if whole else [value] * len(group.parameters)
            for parameter, tensor in zip(group.parameters, tensors, strict=True):
                found[f"{key}.{names[parameter]}"] = tensor
    return found


def load_optimizer_state(
    engine: Engine,
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    *,
    state: Mapping[str, Tensor],
) -> None:
    """Set the optimizer's state from `optimizer_state` of any stage and rank count."""
    keys = {full.partition(".")[0] for full in state}
    if engine.zero_optimization_stage() == 0:
        for parameter, name in names.items():
            for key in keys:
                value = state[f"{key}.{name}"]
                whole = value.shape == parameter.shape
                # In the parameter's own memory layout, which may be channels_last.
                like = parameter if whole else value
                own = torch.empty_like(like, device=parameter.device)
                optimizer.state[parameter][key] = own.detach().copy_(value)
        return
    for group in flat_groups(engine):
        for key in keys:
            tensors = [state[f"{key}.{names[parameter]}"] for parameter in group.parameters]
            whole = tensors[0].shape == group.parameters[0].shape
            one = tensors[0].to(group.shard.device, copy=True)
            value = group.scatter(tensors) if whole else one
            optimizer.state[group.shard][key] = value


class _LogFile(logging.Handler):
    """Appends lines to a file, or prints them where it cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(module)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        line = self.format(record)
        try:
            append_whole(self._path, f"{line}\n".encode())
        except OSError:
            to_stderr(line)


def _log_to(path: Path | None) -> None:
    """Keep all but errors of DeepSpeed off the terminal; ``path`` gets its every line."""
    for handler in ds_logger.handlers:
        if type(handler) is logging.StreamHandler:  # its own, of no one who listens to all logs
            handler.setLevel(logging.ERROR)
    if path is not None:
        ds_logger.setLevel(logging.INFO)
        ds_logger.addHandler(_LogFile(path))
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
