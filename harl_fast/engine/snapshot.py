"""What a checkpoint holds of a running training: its record, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harl_fast.collectives import gather_rows
from harl_fast.engine.checkpoint.format import Checkpoint, load_exactly, mismatch
from harl_fast.engine.deepspeed import load_optimizer_state, optimizer_state
from harl_fast.engine.resume import ANEW, changed, recorded_engine
from harl_fast.engine.state import LoopState
from harl_fast.errors import CheckpointError
from harl_fast.optim.build import state_shapes


def record_of(state: LoopState, *, step: int, skipped: int, run_id: str) -> dict[str, Any]:
    """Return the fields of `format.Record` that are known after ``step`` steps."""
    epoch, epoch_step = divmod(step, state.schedule.steps_per_epoch)
    return {
        "run_id": run_id,
        "step": step,
        "epoch": epoch,
        "epoch_step": epoch_step,
        "skipped": skipped,
        **state.about,
        "engine": state.engine_config.record(),
        "ranks": state.machine.ranks,
        "loader": {**state.loader.state_dict(), "epoch": epoch, "step": epoch_step},
    }


def collect_state(state: LoopState) -> dict[str, Tensor]:
    """Return the whole state for a checkpoint; on ranks other than 0, nothing.

    All ranks must call it. Training is not touched, so it does not matter when it is called; the
    tensors are partly the networks' own and hold until the next step.

    Running statistics of BatchNorm, which differ by rank unless synced, are saved as their mean
    over ranks, and each rank's own in ``ranks.statistics`` (R, N): a run resumed on as many ranks
    continues with those. ``ranks.cpu_generator`` and ``ranks.cuda_generator`` (R, bytes) are
    torch's. Nothing here draws from them in training, whose draws are functions of seed, epoch and
    sample; they are kept so that code that does, such as a dropout layer, is resumed exactly too.
    """
    found = {
        f"optim.{name}": tensor
        for name, tensor in optimizer_state(state.engine, state.optimizer, _names(state)).items()
    }
    statistics = _statistics(state)
    rows = {"cpu_generator": gather_rows(torch.get_rng_state())}
    if state.device.type == "cuda":
        rows["cuda_generator"] = gather_rows(torch.cuda.get_rng_state(state.device))
    flat = [tensor.reshape(-1) for tensor in statistics.values()]
    own = torch.cat(flat).float().cpu() if flat else torch.empty(0)
    by_rank = gather_rows(own) if flat else own[None]
    if state.machine.rank > 0:
        return {}
    if len(by_rank) > 1:  # of several ranks
        rows["statistics"] = by_rank
    for prefix, network in state.networks.items():
        found |= {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}
    found |= _unpack(by_rank.mean(0), statistics)
    found |= {f"ranks.{name}": tensor for name, tensor in rows.items()}
    if state.scale is not None:
        found |= {f"scale.{name}": tensor for name, tensor in state.scale.state().items()}
    return {name: tensor.detach() for name, tensor in found.items()}


def _statistics(state: LoopState) -> dict[str, Tensor]:
    """Return all running statistics that training moves, by their names in a checkpoint.

    Frozen ones are left out: a mean over three ranks would not keep their bits.
    """
    return {
        ".".join(filter(None, (prefix, place, name))): buffer
        for prefix, network in state.networks.items()
        for place, module in network.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if module.training and buffer.is_floating_point()
    }


def _unpack(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like.values()])
    return {
        name: piece.view(tensor.shape)
        for piece, (name, tensor) in zip(pieces, like.items(), strict=True)
    }


def load_networks(networks: Mapping[str, nn.Module], checkpoint: Checkpoint) -> None:
    """Set networks, by their prefixes, from a checkpoint; do it before the engine exists.

    ZeRO then copies its fp32 shards from the right weights. Raises CheckpointError naming what
    differs if the checkpoint is of another model.
    """
    for prefix, module in networks.items():
        try:
            load_exactly(module, checkpoint.tensors(prefix))
        except RuntimeError as error:
            raise CheckpointError(
                f"{checkpoint.path} is of another network than this configuration describes "
                f"({mismatch(error)}). Use the one beside its checkpoints folder"
            ) from error


def load_rest(state: LoopState, checkpoint: Checkpoint) -> None:
    """Set what `load_networks` leaves from a checkpoint, once the engine exists.

    That is the optimizer's state, the loss scale, and what each rank has for itself. Raises
    CheckpointError if any of it is missing, left over or of another kind.
    """
    found, record = checkpoint.tensors("optim"), checkpoint.record
    if found or record.skipped < record.step:  # AdamW has none before the first step that moves
        expected = {
            f"{key}.{name}": (torch.float32, shape)
            for parameter, name in _names(state).items()
            for key, shape in state_shapes(state.optimizer, parameter).items()
        }
        _check_kinds(checkpoint, "optim", found, expected)
        load_optimizer_state(state.engine, state.optimizer, _names(state), state=found)
    if state.scale is not None and recorded_engine(checkpoint).precision == "fp16":
        scale = checkpoint.tensors("scale")
        kinds = {name: (each.dtype, each.shape) for name, each in state.scale.state().items()}
        _check_kinds(checkpoint, "scale", scale, kinds)
        state.scale.load(scale)
    _load_rank(state, checkpoint)


def _check_kinds(
    checkpoint: Checkpoint,
    prefix: str,
    found: dict[str, Tensor],
    expected: dict[str, tuple[torch.dtype, torch.Size]],
) -> None:
    """Raise CheckpointError unless names, dtypes and shapes of tensors are the expected ones."""

    def text(dtype: torch.dtype, shape: torch.Size) -> str:
        return f"{str(dtype).removeprefix('torch.')} {list(shape)}"

    kinds = {name: text(tensor.dtype, tensor.shape) for name, tensor in found.items()}
    different = changed(kinds, {name: text(*each) for name, each in expected.items()})
    if different:
        name, (there, here) = next(iter(different.items()))
        raise CheckpointError(
            f"{checkpoint.path} does not hold the state of this run: {len(different)} tensors "
            f"differ, first {prefix}.{ascii(name)[1:80]} which is {there} instead of {here} "
            f"(None: there is none). Use another checkpoint, or {ANEW}"
        )


def _load_rank(state: LoopState, checkpoint: Checkpoint) -> None:
    """Set a rank's generators and, on as many ranks as before, its own running statistics."""
    rank, rows = state.machine.rank, checkpoint.tensors("ranks")
    statistics, buffers = rows.get("statistics"), _statistics(state)
    try:
        if statistics is not None and len(statistics) == state.machine.ranks:
            for name, value in _unpack(statistics[rank], buffers).items():
                buffers[name].copy_(value)
        for name, rng_state in rows.items():
            if name == "cpu_generator" and rank < len(rng_state):
                torch.set_rng_state(rng_state[rank].clone())  # it ignores a view's offset
            if name == "cuda_generator" and rank < len(rng_state) and state.device.type == "cuda":
                torch.cuda.set_rng_state(rng_state[rank].clone(), state.device)
    except (RuntimeError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: what it holds under ranks.* does not fit rank {rank} ({error}). "
            f"Use another checkpoint, or {ANEW}"
        ) from error


def _names(state: LoopState) -> dict[nn.Parameter, str]:
    """Return the trained parameters with their names."""
    named = state.module.named_parameters()
    return {parameter: name for name, parameter in named if parameter.requires_grad}
