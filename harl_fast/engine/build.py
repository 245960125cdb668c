"""Loader, networks and colours of one rank, each from the run's configuration."""

from __future__ import annotations

from pathlib import Path

import torch

from harl_fast.config import RunConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.machine import Machine
from harl_fast.engine.views import colouring, loader_colours, view_geometry, views_at
from harl_fast.errors import ConfigError
from harl_fast.model.harl import HARL


def build_loader(
    config: RunConfig, engine_config: EngineConfig, machine: Machine, *, data: Path, epoch: int = 0
) -> BetonLoader:
    """Return this rank's loader of the folder's train.beton, ready for the views of an epoch.

    Raises ConfigError or DataError.
    """
    _check_batch(config, engine_config)
    return BetonLoader(
        data / "train.beton",
        views=view_geometry(config, epoch=epoch),
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
        colour=colouring(config, machine.device, epoch=epoch),
    )


def _check_batch(config: RunConfig, engine_config: EngineConfig) -> None:
    """Raise ConfigError if a BatchNorm would see a single value per channel."""
    batches, sync_bn = engine_config.batches, config.model.sync_bn
    if batches.batch_micro > 1 or (batches.ranks > 1 and sync_bn == "all"):
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


def compile_networks(harl: HARL, *, sizes: int) -> None:
    """Compile both networks, for each of so many sizes of views once: static code is faster."""
    # Online and target share their functions, of which torch keeps 8 versions by default and then
    # runs uncompiled: from a fifth size on.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 2 * sizes + 2)
    for network in (harl, harl.target):
        for child in network.children():
            child.compile(dynamic=False)
