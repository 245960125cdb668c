"""Checkpoints of random networks, without a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harl_fast.config import ModelConfig, RunConfig
from harl_fast.engine.checkpoint.format import Checkpoint, write_checkpoint
from harl_fast.engine.networks import random_encoder
from harl_fast.model.heads import MLPHead


def checkpoint(
    folder: Path, *, spoil: Mapping[str, float] = {}, heads: bool = False, **model: Any
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Write a checkpoint of a random encoder; return it and the encoder's tensors.

    spoil: values for the first element of some of them. heads: a projector too.
    """
    section = ModelConfig.model_validate(model)
    config = RunConfig(epochs=20, model=section)
    encoder = random_encoder(config, seed=5)
    tensors = encoder.state_dict()
    stir(tensors)
    for name, value in spoil.items():
        tensors[name][0] = value
    saved = {f"online.backbone.{name}": tensor for name, tensor in tensors.items()}
    if heads:
        sizes = section.projector_hidden, section.projector_out
        projector = MLPHead(encoder.out_channels, *sizes, layers=section.projector_layers)
        weights = projector.state_dict()
        saved |= {f"online.projector.{name}": tensor for name, tensor in weights.items()}
    written = write_checkpoint(
        folder / "checkpoints",
        tensors=saved,
        record={
            "step": 3,
            "epoch": 1,
            "epoch_step": 1,
            "config": config,
            "engine": {},
            "data": {},
            "run_id": "0123",
        },
    )
    return written, tensors


def stir(tensors: Mapping[str, Tensor]) -> None:
    """Give BatchNorm layers statistics and gains of their own, in place, as training does."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        drawn = torch.rand(tensor.shape, generator=generator) + 0.5
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.copy_(drawn)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.2 * (drawn - 1.0))
