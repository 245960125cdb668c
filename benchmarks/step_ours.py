"""Our training step as the benchmark runs it: `Stepper` over the real engine, on a fixed batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks import step_setup as setup
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.machine import this_machine
from harl_fast.engine.trainer import Stepper, build
from harl_fast.optim.lars import LARS

LOG_EVERY = 50
"""Steps between readings of the meter, the configuration's default."""


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, figures) a step for ever; figures are filled where the meter is read.

    settings: loss, precision, channels_last, batch, threads; keep_stage: ZeRO's buffers;
    compile: torch.compile; sizes: of the views, two by default.
    """
    setup.quiet_threads(settings)
    machine = this_machine()
    ds.start(machine, timeout_minutes=1)
    overrides = ("harl_fast.shard_one_rank=true",) if settings.get("keep_stage") else ()
    size, sizes = settings["batch"], settings.get("sizes", setup.PAIR)
    parts = build(
        setup.run_config(settings["loss"], sizes=sizes, compiled=settings.get("compile", False)),
        setup.engine_config(settings["precision"], batch=size, overrides=overrides),
        machine,
        loader=setup.endless(size),
    )
    parts = replace(parts, photometric=None)  # the batch is coloured and normalised
    if not settings["channels_last"]:
        parts.harl.to(memory_format=torch.contiguous_format)
        assert isinstance(parts.optimizer, LARS)
        parts.optimizer.init_state()
    batch = setup.fixed_batch(batch=size, channels_last=settings["channels_last"], sizes=sizes)
    stepper = Stepper(parts)
    every = 1 if settings.get("watched") else LOG_EVERY
    while True:
        stepper.advance([batch], epoch=0)
        yield size, stepper.meter.take() if stepper.step % every == 0 else {}
