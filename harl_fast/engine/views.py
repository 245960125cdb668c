"""How views are cut and coloured in each epoch of a run, and who does it: loader and device."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from harl_fast.config import RunConfig, ViewConfig
from harl_fast.data.container.manifest import find_container
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Colouring, Photometric
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.machine import Machine
from harl_fast.errors import ConfigError
from harl_fast.model.backbones import feature_size
from harl_fast.model.loss import COMPARING
from harl_fast.schedules import size_changes, size_schedule

FEWEST_CELLS = 4
"""Side of a feature map in cells, below which masks hardly separate foreground from background."""


def views_at(config: RunConfig, *, epoch: int = 0) -> tuple[ViewConfig, ...]:
    """Return the views of an epoch: the configured ones, of role both with its ``size_px``.

    Raises ConfigError for a wrong data.size_schedule.
    """
    views, schedule = config.data.views, config.data.size_schedule
    if not schedule:
        return views
    size_px = size_schedule(schedule)(epoch / config.epochs)
    return tuple(
        view.model_copy(update={"size_px": size_px}) if view.role == "both" else view
        for view in views
    )


def size_phases(config: RunConfig) -> dict[int, int]:
    """Return the epochs in which views may change their sizes, 0 first, and how many keep them."""
    schedule, epochs = config.data.size_schedule, config.epochs
    starts = size_changes(schedule, epochs=epochs) if schedule else [0]
    return {start: end - start for start, end in pairwise([*starts, epochs])}


def view_geometry(config: RunConfig, *, epoch: int = 0) -> list[ViewGeometry]:
    """Return one geometry per view of an epoch; its cells are those of the map that regions
    are pooled from."""
    return [
        ViewGeometry.of(
            view, cells=feature_size(config.model, size_px=view.size_px, level=config.loss.level)
        )
        for view in views_at(config, epoch=epoch)
    ]


def sizes_in(config: RunConfig) -> set[int]:
    """Return all sides of views in pixels that occur in a run."""
    starts = size_phases(config)
    return {view.size_px for epoch in starts for view in views_at(config, epoch=epoch)}


def sizes_text(views: list[ViewGeometry]) -> str:
    """Return "160 px, 5 x 5 cells", or all sizes where they differ."""
    sizes = dict.fromkeys(f"{v.size_px} px, {v.cells} x {v.cells} cells" for v in views)
    return " and ".join(sizes)


def small_map_text(config: RunConfig) -> str:
    """Return a warning if a view's feature map is too small to tell regions apart, or nothing."""
    starts = size_phases(config)
    cells = {v.size_px: v.cells for epoch in starts for v in view_geometry(config, epoch=epoch)}
    small = {size: side for size, side in sorted(cells.items()) if side < FEWEST_CELLS}
    if not small or config.loss.type == "byol":
        return ""
    remedies = ["use larger views"]
    if config.model.stem != "small":
        remedies.insert(0, "set model.stem=small")
    if config.model.last_stride > 1:
        remedies.insert(0, "set model.last_stride=1 (twice as many per side)")
    sizes = " and ".join(f"{side} x {side} cells at {size} px" for size, side in small.items())
    return (
        f"warning: feature maps have {sizes}, and masks tell little on fewer than "
        f"{FEWEST_CELLS} x {FEWEST_CELLS}: {', or '.join(remedies)}"
    )


def loader_colours(config: RunConfig, device: torch.device) -> bool:
    """Return whether the loader's threads colour the views, rather than the device."""
    if config.data.colour == "auto":
        return device.type == "cpu"
    return config.data.colour == "loader"


def colouring(config: RunConfig, device: torch.device, *, epoch: int = 0) -> Colouring | None:
    """Return how the loader colours the views of an epoch, None if the device does."""
    if not loader_colours(config, device):
        return None
    return Colouring(views_at(config, epoch=epoch), mean=config.data.mean, std=config.data.std)


def build_loader(
    config: RunConfig, engine_config: EngineConfig, machine: Machine, *, data: Path, epoch: int = 0
) -> BetonLoader:
    """Return this rank's loader of the folder's training split, ready for the views of an epoch.

    Raises ConfigError or DataError.
    """
    _check_batch(config, engine_config)
    views = view_geometry(config, epoch=epoch)  # refuses what cannot be before data are looked for
    return BetonLoader(
        find_container(data, "train"),
        views=views,
        batch_global=engine_config.batches.batch_global,
        batch_micro=engine_config.batches.batch_micro,
        rank=machine.rank,
        world=machine.ranks,
        seed=config.seed,
        workers=config.data.workers,
        ranks_here=machine.ranks_here,
        batches_ahead=config.data.batches_ahead,
        order=config.data.order,
        damaged=config.data.damaged,
        check=config.data.check,
        skip_broken=config.data.skip_broken,
        colour=colouring(config, machine.device, epoch=epoch),
        channels=config.model.in_channels,
    )


def _check_batch(config: RunConfig, engine_config: EngineConfig) -> None:
    """Raise ConfigError if a micro batch of one leaves layers or terms of the loss without sense.

    A BatchNorm would see a single value per channel; `loss.contrast` and `loss.spread` are 0.
    """
    batches, sync_bn = engine_config.batches, config.model.sync_bn
    if batches.batch_micro > 1:
        return
    for name in COMPARING:
        if getattr(config.loss, name):
            raise ConfigError(
                f"{engine_config.source}: {batches}: loss.{name} compares the images of a micro "
                f"batch and takes 2 or more. Use --engine-set train_micro_batch_size_per_gpu=2 or "
                f"more, or --set loss.{name}=0"
            )
    if batches.ranks > 1 and sync_bn == "all":
        return
    one_cell = any(view.cells == 1 for view in view_geometry(config))
    if batches.ranks == 1 or sync_bn == "none" or one_cell:
        raise ConfigError(
            f"{engine_config.source}: {batches}: BatchNorm needs 2 or more images to tell their "
            f"spread. Use --engine-set train_micro_batch_size_per_gpu=2 or more, or on several "
            f"ranks --set model.sync_bn=all"
        )


def build_photometric(config: RunConfig, machine: Machine) -> Photometric | None:
    """Return what colours and normalises views on the device; None where the loader does."""
    if loader_colours(config, machine.device):
        return None
    data = config.data
    colour = Photometric(views_at(config), mean=data.mean, std=data.std, seed=config.seed)
    return colour.to(machine.device)
