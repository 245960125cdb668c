"""The whole loop in a process of its own: which share of the time it waits for the loader.

`python -m benchmarks.step_loop '<settings JSON>'` prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.process import answer

SIZE_PX = 96


def measure(settings: Mapping[str, Any], *, log: Path) -> dict[str, Any]:
    """Run it in a fresh process. Raises RuntimeError, naming the log, when that fails."""
    threads = str(settings["threads"])
    environment = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
    words = [json.dumps(dict(settings))]
    return answer("benchmarks.step_loop", words, environment=environment, log=log)


def windows(settings: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Yield the meter's figures of one window of steps after another.

    settings: data (a folder with train.beton), threads, batch, warm (steps before the first
    window), window (steps of each), windows.
    """
    from benchmarks import step_setup as setup
    from harl_fast.engine import deepspeed as ds
    from harl_fast.engine.machine import this_machine
    from harl_fast.engine.trainer import Stepper, build
    from harl_fast.engine.views import build_loader

    setup.quiet_threads(dict(settings))
    machine = this_machine()
    ds.start(machine, timeout_minutes=1)
    config = setup.run_config("byol+f_loss", sizes=(SIZE_PX, SIZE_PX))
    engine = setup.engine_config("fp32", batch=settings["batch"])
    loader = build_loader(config, engine, machine, data=Path(settings["data"]))
    stepper = Stepper(build(config, engine, machine, loader=loader))
    ends = [settings["warm"] + settings["window"] * (n + 1) for n in range(settings["windows"])]
    while stepper.step < ends[-1]:
        epoch = loader.epoch
        for batch in stepper.meter.timed(iter(loader)):
            stepper.advance([batch], epoch=epoch)
            if stepper.step == settings["warm"]:
                stepper.meter.drain()
            elif stepper.step in ends:
                yield stepper.meter.drain()
            if stepper.step == ends[-1]:
                break


if __name__ == "__main__":
    print(json.dumps({"windows": list(windows(json.loads(sys.argv[1])))}), flush=True)
    os._exit(0)  # the loader's thread is still at work
