"""From configurations and a data folder to everything that pretraining needs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.optim import Optimizer

from harl_fast.config import RunConfig
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.checkpoint.format import Checkpoint
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.machine import Machine, keep_freed_memory
from harl_fast.engine.networks import EncoderFile, build_model
from harl_fast.engine.precision import Autocast, LossScale
from harl_fast.engine.resume import check_position
from harl_fast.engine.schedule import Course
from harl_fast.engine.state import Parts, load_networks, load_rest
from harl_fast.engine.views import colouring, loader_colours, sizes_in, view_geometry, views_at
from harl_fast.errors import ConfigError
from harl_fast.model.harl import HARL
from harl_fast.optim.build import build_optimizer, init_momentum
from harl_fast.rng import RANK, stream


def build(
    config: RunConfig,
    engine_config: EngineConfig,
    machine: Machine,
    *,
    loader: BetonLoader,
    weights: Checkpoint | EncoderFile | None = None,
    resume: bool = False,
) -> Parts:
    """Return one rank's parts; `ds.start` must have been called.

    loader: from `build_loader`. weights: where the networks start from; with ``resume`` the
    optimizer too, and the run must match. Raises ConfigError or CheckpointError.
    """
    course = Course.of(
        config,
        steps_per_epoch=loader.steps,
        batch_global=engine_config.batches.batch_global,
    )
    if resume and isinstance(weights, Checkpoint):
        check_position(weights, course, beton_sha256=loader.manifest.beton_sha256)
    # What a rank draws without saying so is a function of the run, and saved with it.
    torch.manual_seed(int(stream(config.seed, 0, machine.rank, 0, RANK)))
    if machine.device.type == "cpu":
        keep_freed_memory()
    harl = build_model(config).to(machine.device)
    if isinstance(weights, EncoderFile):
        weights.load_into(harl)
    elif weights is not None:
        load_networks(harl, weights)
    optimizer, engine = _engine(config, engine_config, harl)
    scale = None
    if engine_config.precision == "fp16":
        scale = LossScale(engine_config.file.fp16, device=machine.device)
        scale.attach(optimizer)
    parts = Parts(
        config=config,
        engine_config=engine_config,
        machine=machine,
        loader=loader,
        photometric=_photometric(config, machine),
        harl=harl,
        optimizer=optimizer,
        engine=engine,
        scale=scale,
        course=course,
    )
    if resume and isinstance(weights, Checkpoint):
        load_rest(parts, weights)
    return parts


def _photometric(config: RunConfig, machine: Machine) -> Photometric | None:
    if loader_colours(config, machine.device):
        return None
    data = config.data
    colour = Photometric(views_at(config), mean=data.mean, std=data.std, seed=config.seed)
    return colour.to(machine.device)


def _engine(
    config: RunConfig, engine_config: EngineConfig, harl: HARL
) -> tuple[Optimizer, ds.Engine]:
    """Return the optimizer and the engine over ``harl``, which is laid out and compiled here."""
    optimizer = build_optimizer(config.optim, harl)
    engine = ds.initialize(
        Autocast(harl, precision=engine_config.precision),
        optimizer,
        config=engine_config.deepspeed(),
    )
    if engine_config.stage == 0:
        # Under ZeRO weights are slices of one flat buffer and keep its layout.
        harl.to(memory_format=torch.channels_last)
    init_momentum(optimizer)
    if config.model.compile:
        _compile(harl, sizes=len(sizes_in(config)))
    return optimizer, engine


def _compile(harl: HARL, *, sizes: int) -> None:
    """Compile both networks, for each of so many sizes of views once: static code is faster."""
    # Online and target share their functions, of which torch keeps 8 versions by default and then
    # runs uncompiled: from a fifth size on.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 2 * sizes + 2)
    for network in (harl, harl.target):
        for child in network.children():
            child.compile(dynamic=False)


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
