"""The same operations in a bare PyTorch loop: no engine, no schedules, no meter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import step_setup as setup
from harl_fast.config import OptimConfig
from harl_fast.engine.machine import keep_freed_memory
from harl_fast.engine.networks import build_model
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.optim.build import build_optimizer


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, figures) a step for ever; see `step_ours.batches`."""
    setup.quiet_threads(settings)
    keep_freed_memory()  # as `build` does: the loop is measured, not the allocator
    harl = build_model(setup.run_config(settings["loss"]))
    if settings["channels_last"]:
        harl.to(memory_format=torch.channels_last)
    optim = OptimConfig(lr=setup.LR, weight_decay=setup.DECAY)
    optimizer = build_optimizer(optim, harl)
    target, online = ema_pairs(harl.target, harl)
    size = settings["batch"]
    batch = setup.fixed_batch(batch=size, channels_last=settings["channels_last"])
    half = settings["precision"] == "bf16"
    while True:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss, _ = harl(batch.views, batch.cells, alpha=0.8, beta=0.5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema_update(target, online, tau=setup.TAU)
        yield size, {"loss": float(loss)} if settings.get("watched") else {}
