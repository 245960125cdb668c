"""The same operations in a bare PyTorch loop: no engine, no schedules, no meter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import step_setup as setup
from harl_fast.config import OptimConfig
from harl_fast.engine.machine import keep_freed_memory
from harl_fast.engine.networks import build_model
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.model.harl import HARL
from harl_fast.optim.build import build_optimizer


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, figures) per step for ever; see `step_ours.batches`."""
    setup.quiet_threads(settings)
    keep_freed_memory()  # as `build` does: the loop is measured, not the allocator
    harl = build_model(setup.run_config(settings["loss"]))
    if settings["channels_last"]:
        harl.to(memory_format=torch.channels_last)
    optim = OptimConfig(lr=setup.LR, weight_decay=setup.DECAY)
    size = settings["batch"]
    batch = setup.fixed_batch(batch=size, channels_last=settings["channels_last"])
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else None
    losses = steps(harl, build_optimizer(optim, harl), lambda: batch[:2], dtype=dtype)
    for loss in losses:
        yield size, {"loss": float(loss)} if settings.get("watched") else {}


def steps(
    harl: HARL,
    optimizer: torch.optim.Optimizer,
    inputs: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]],
    *,
    dtype: torch.dtype | None,
) -> Iterator[Tensor]:
    """Yield the loss of one step after another. inputs: gives views and cells, on the device.

    dtype: of autocast; None for none.
    """
    target, online = ema_pairs(harl.target, harl)
    while True:
        views, cells = inputs()
        with torch.autocast(views[0].device.type, dtype=dtype, enabled=dtype is not None):
            loss, _ = harl(views, cells, alpha=0.8, beta=0.5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema_update(target, online, tau=setup.TAU)
        yield loss
