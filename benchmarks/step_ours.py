"""Our training step as the benchmark runs it: `Stepper` over the real engine, on a fixed batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks import step_setup as setup
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.launchers import note_place
from harl_fast.engine.machine import this_machine
from harl_fast.engine.trainer import Stepper, build
from harl_fast.optim.lars import LARS
from harl_fast.supervision import end_with_parent

LOG_EVERY = 50
"""Steps between readings of the meter, the configuration's default."""
STOPPED_MINUTES = 60
"""Two ranks wait for each other that long: other contenders' turns count, too."""


def second_rank(settings: dict[str, Any]) -> int:
    """Start one more process of this module, and return how many ranks take a step together.

    settings: ranks, 2 for one that shares the steps of this process, whose rank is 0; apart: it
    does its own, for comparison.
    """
    if settings.get("ranks", 1) == 1 or "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    own: dict[str, str] = {}
    note_place(own)
    ranks = 1 if settings.get("apart") else 2
    os.environ.update(own | {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)})
    other = {} if ranks == 1 else {"RANK": "1", "LOCAL_RANK": "1"}
    words = [sys.executable, "-m", "benchmarks.step_ours", json.dumps(settings)]
    subprocess.Popen(words, env=os.environ | other)  # of this process group: stopped with it
    return ranks


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, figures) per step for ever; figures are filled where the meter is read.

    settings: loss, precision, channels_last, batch (of a rank), threads; keep_stage: ZeRO's
    buffers; compile: torch.compile; sizes: of the views, two by default; see also `second_rank`.
    """
    ranks = second_rank(settings)
    setup.quiet_threads(settings)
    machine = this_machine()
    ds.start(machine, timeout_minutes=STOPPED_MINUTES)
    overrides = ("harl_fast.shard_one_rank=true",) if settings.get("keep_stage") else ()
    size, sizes = settings["batch"], settings.get("sizes", setup.PAIR)
    parts = build(
        setup.run_config(settings["loss"], sizes=sizes, compiled=settings.get("compile", False)),
        setup.engine_config(
            settings["precision"], batch=size * ranks, overrides=overrides, ranks=ranks
        ),
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
        yield size, stepper.meter.drain() if stepper.step % every == 0 else {}


if __name__ == "__main__":
    end_with_parent(signal.SIGKILL)
    for _ in batches(json.loads(sys.argv[1])):
        pass
