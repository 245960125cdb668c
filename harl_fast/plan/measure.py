"""Two minutes of measurement on the machine at hand, instead of the plan's assumptions."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from harl_fast.config import RunConfig
from harl_fast.data.container.manifest import find_container
from harl_fast.data.loader import BetonLoader
from harl_fast.data.order import spread
from harl_fast.engine.compilation import compile_networks
from harl_fast.engine.machine import keep_freed_memory
from harl_fast.engine.networks import build_model
from harl_fast.engine.views import colouring, size_phases, sizes_in, view_geometry, views_at
from harl_fast.files import to_stderr
from harl_fast.host import usable_cores
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.optim.build import build_optimizer
from harl_fast.plan.planning import sides_text

LOADER_S, STEP_S = 60.0, 60.0
"""Seconds for the loader, over all sizes of views, and for the networks."""
_BATCH, _SAMPLE, _LEAST = 32, 512, 3
Span = tuple[float, float, float]
"""Median, most and least of a measurement's rounds."""


def timed(
    run: Callable[[], int], *, budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> Span:
    """Return seconds per image of a function that returns how many it did.

    It is called once for nothing, then at least `_LEAST` times and until the budget is used up.
    """
    run()
    found: list[float] = []
    end = clock() + budget_s
    while len(found) < _LEAST or clock() < end:
        start = clock()
        images = run()
        found.append((clock() - start) / images)
    return statistics.median(found), max(found), min(found)


def loader_us(
    configs: Sequence[RunConfig], data: Path, device: torch.device
) -> dict[tuple[int, ...], Span]:
    """Return the microseconds of one core per image by the views' sizes, from the real loader.

    data: folder of containers. device: which trains; a GPU may colour the views. All cores at hand
    are used, so that what they cost each other is part of it.
    """
    wanted: dict[tuple[int, ...], tuple[RunConfig, int]] = {}
    for config in configs:
        for epoch in size_phases(config):
            sizes = tuple(view.size_px for view in views_at(config, epoch=epoch))
            wanted.setdefault(sizes, (config, epoch))
    cores = usable_cores()
    found: dict[tuple[int, ...], Span] = {}
    for sizes, (config, epoch) in wanted.items():
        to_stderr(f"measuring the loader at {sides_text(sizes)} on {cores} cores")
        loader = BetonLoader(
            find_container(data, "train"),
            views=view_geometry(config, epoch=epoch),
            batch_global=_BATCH,
            batch_micro=_BATCH,
            workers=cores,
            check=config.data.check,
            colour=colouring(config, device, epoch=epoch),
            channels=config.model.in_channels,
        )
        with contextlib.closing(loader):
            ids = spread(loader.count, _SAMPLE).tolist()
            once = functools.partial(_pass, loader, ids)
            median, most, least = timed(once, budget_s=LOADER_S / len(wanted))
        found[sizes] = (1e6 * cores * median, 1e6 * cores * most, 1e6 * cores * least)
    return found


def _pass(loader: BetonLoader, ids: Sequence[int]) -> int:
    return sum(len(batch.ids) for batch in loader.shown(ids))


def step_seconds(
    config: RunConfig,
    sizes: tuple[int, ...],
    *,
    precision: str,
    micro: int,
    budget_s: float = STEP_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Span:
    """Return the seconds per image of networks, optimizer and moving average on this machine.

    Views of noise, micro batches of ``micro``, on the GPU if there is one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    at = sides_text(sizes)
    to_stderr(f"measuring the step at {at}, {micro} images at once, on the {device.type}")
    if device.type == "cpu":
        keep_freed_memory()
    harl = build_model(config).to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config.optim, harl)
    target, online = ema_pairs(harl.target, harl)
    if config.model.compile:
        compile_networks(harl, sizes=len(sizes_in(config)))
    shapes = [(micro, config.model.in_channels, size, size) for size in sizes]
    views = [
        torch.randn(shape, device=device).to(memory_format=torch.channels_last) for shape in shapes
    ]
    sides = [harl.feature_size(size) for size in sizes]
    cells = [torch.rand(micro, side, side, device=device) for side in sides]
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16

    def once() -> int:
        with torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32"):
            loss, _ = harl(views, cells, alpha=0.8, beta=0.5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema_update(target, online, tau=0.99)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return micro

    return timed(once, budget_s=budget_s, clock=clock)
