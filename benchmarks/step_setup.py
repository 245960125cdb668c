"""What all contenders of the step benchmark share: network, configuration, one fixed batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from harl_fast.config import DataConfig, RunConfig
from harl_fast.data.loader import Batch
from harl_fast.engine.config import EngineConfig, read_engine_file, settle

CPU = Path(__file__).parents[1] / "ds_configs" / "cpu.json"
PAIR, MULTICROP = (64, 64), (64, 64, 32, 32, 32, 32)
"""Sides of the views in pixels; the smaller ones are of role online."""
CELL_PX = 32
"""Of the input; what a ResNet-18 makes a cell of."""
HIDDEN, OUT = 4096, 256
"""Of both heads, as in BYOL and lightly."""
DECAY, TAU, LR, STEPS = 1e-6, 0.99, 0.1, 1000


def quiet_threads(settings: dict[str, Any]) -> None:
    """Give torch as many threads as the settings say."""
    torch.set_num_threads(settings["threads"])


def run_config(
    loss: str, *, arch: str = "resnet18", sizes: Sequence[int] = PAIR, compiled: bool = False
) -> RunConfig:
    """Return the run's configuration; no warm-up, so that every step moves the weights."""
    policies = itertools.cycle(view.model_dump() for view in DataConfig().views)
    views = [
        {**policy, "size_px": size, "role": "both" if size == max(sizes) else "online"}
        for policy, size in zip(policies, sizes, strict=False)
    ]
    return RunConfig.model_validate(
        {
            "epochs": 1,
            "data": {"views": views},
            "model": {
                "arch": arch,
                "projector_hidden": HIDDEN,
                "projector_out": OUT,
                "predictor_hidden": HIDDEN,
                "compile": compiled,
            },
            "loss": {"type": loss, "alpha": "0.8", "beta": "0.5"},
            "target": {"tau_start": TAU, "tau_end": TAU},
            "optim": {"lr": LR, "lr_scaling": "none", "warmup_epochs": 0, "weight_decay": DECAY},
        }
    )


def engine_config(
    precision: str, *, batch: int, overrides: tuple[str, ...] = (), ranks: int = 1
) -> EngineConfig:
    """Return ds_configs/cpu.json at this precision and global batch."""
    own = [f"train_batch_size={batch}", *overrides]
    if precision != "fp32":
        own.append(f"{precision}.enabled=true")
    return settle(read_engine_file(CPU, overrides=own), ranks=ranks, source=str(CPU))


def fixed_batch(
    *, batch: int, channels_last: bool, seed: int = 0, sizes: Sequence[int] = PAIR
) -> Batch:
    """Return a batch of noise in memory, as the loader would hand it over: views normalised."""
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    views = tuple(
        torch.randn(batch, 3, size, size, generator=generator).to(memory_format=layout)
        for size in sizes
    )
    sides = [size // CELL_PX for size in sizes]
    cells = tuple(torch.rand(batch, side, side, generator=generator) for side in sides)
    return Batch(views, cells, torch.zeros(batch, dtype=torch.int64), torch.arange(batch))


def endless(batch: int) -> Any:
    """Return a stand-in for the loader where the batch is fixed."""
    manifest = SimpleNamespace(beton_sha256="0" * 64, count=batch * STEPS)
    return SimpleNamespace(manifest=manifest, steps=STEPS, copied=lambda: None)
