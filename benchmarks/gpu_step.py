"""Sections 3 and 5 of the GPU check: what a step of `paper` takes, by parts, and compiled."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks import step_setup as setup
from benchmarks.gpu_numbers import SMALL, started
from benchmarks.gpu_sections import CheckSettings, Findings
from benchmarks.step_bare import steps as bare_steps
from harl_fast.config import RunConfig, load_config
from harl_fast.data.loader import Batch
from harl_fast.engine.config import EngineConfig, read_engine_file, settle
from harl_fast.engine.machine import Machine
from harl_fast.engine.networks import build_model
from harl_fast.engine.precision import AUTOCAST
from harl_fast.engine.state import TrainState
from harl_fast.engine.trainer import Stepper, build
from harl_fast.engine.transfer import Transfer
from harl_fast.engine.views import build_photometric, view_geometry
from harl_fast.model.ema import ema_pairs, ema_update
from harl_fast.optim.build import build_optimizer
from harl_fast.optim.lars import LARS
from harl_fast.steps import ROOT

BATCH, WARM, COUNT = 512, 3, 10
SMALL_BATCH, SMALL_COUNT = 8, 2
FEW = 4
PEAK_GB = 60.0
"""A step at 512 images fits cards of 80 GB with room for the rest."""
Work = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """One form of the step, over bytes that lie on the device."""

    stepper: Stepper
    batch: Batch

    def step(self) -> None:
        """Do one, as between two log lines."""
        self.stepper.advance([self.batch], epoch=0)


def configs(
    settings: CheckSettings, *changes: str, engine: tuple[str, ...] = ()
) -> tuple[RunConfig, EngineConfig]:
    """Return `paper` and the file for any GPU, at 512 images in one pass; reduced on a CPU."""
    reduced = ["model.arch=resnet18", *SMALL, "data.size_schedule=32"] if settings.small else []
    config = load_config("paper", overrides=[*reduced, "data.colour=device", *changes])
    path = ROOT / "ds_configs" / ("cpu.json" if settings.small else "gpu.json")
    size = SMALL_BATCH if settings.small else BATCH
    own = [f"train_batch_size={size}", f"train_micro_batch_size_per_gpu={size}", *engine]
    file = read_engine_file(path, overrides=own)
    return config, settle(file, ranks=1, source=path.name)


def noise(
    config: RunConfig, machine: Machine, *, size: int, epoch: int = 0, host: bool = False
) -> Batch:
    """Return a batch of random bytes and cells, on the device or page-locked in host memory."""
    generator, views, cells = torch.Generator().manual_seed(0), [], []
    for view in view_geometry(config, epoch=epoch):
        shape = (size, view.size_px, view.size_px, 3)
        views.append(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        cells.append(torch.rand(size, view.cells, view.cells, generator=generator))

    def placed(tensor: Tensor) -> Tensor:
        if host and machine.gpus:
            return tensor.pin_memory()
        return tensor if host else tensor.to(machine.device)

    labels, ids = torch.zeros(size, dtype=torch.int64), torch.arange(size)
    return Batch(tuple(map(placed, views)), tuple(map(placed, cells)), labels, ids)


def bench(
    settings: CheckSettings, machine: Machine, *changes: str, engine: tuple[str, ...] = ()
) -> Bench:
    """Return a step's objects, built as a run's are."""
    config, engine_config = configs(settings, *changes, engine=engine)
    size = engine_config.batches.batch_micro
    state = build(config, engine_config, machine, loader=setup.endless(size))
    state.harl.watched = False
    return Bench(Stepper(state), noise(config, machine, size=size))


def typical(settings: CheckSettings, machine: Machine, work: Work) -> float:
    """Return the median time from one call to the next in ms, of the device where there is one."""
    warm, count = (1, SMALL_COUNT) if settings.small else (WARM, COUNT)
    for _ in range(warm):
        work()
    if not machine.gpus:
        marks = [time.perf_counter()]
        for _ in range(count):
            work()
            marks.append(time.perf_counter())
        return statistics.median(1e3 * (after - before) for before, after in pairwise(marks))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in pairwise(events))


def step(settings: CheckSettings, found: Findings) -> None:
    """Section 3: a step's time, memory and parts, beside a bare loop's."""
    machine = started()
    ours = bench(settings, machine)
    if machine.gpus:
        torch.cuda.reset_peak_memory_stats()
    whole = typical(settings, machine, ours.step)
    found.note("step", whole, "ms")
    found.note("images per second", 1e3 * len(ours.batch.ids) / whole)
    if machine.gpus:
        peak = torch.cuda.max_memory_allocated() / 1e9
        found.at_most("peak of the GPU's memory", peak, PEAK_GB, "GB")
    # The host asks for as much on a few images, with which the device is done sooner. Ahead of one
    # that is busy it would wait for room in the queue of kernels.
    few = replace(ours, batch=noise(ours.stepper.state.config, machine, size=FEW))
    host = 100.0 * typical(settings, machine, few.step) / whole
    found.at_most("the host's share of it", host, 50.0, "%", timing=True)
    shares = parts(settings, ours, machine)
    for name, took in shares.items():
        found.note(f"  {name}", took, "ms")
    found.at_most("share of the colours", 100.0 * shares["colours"] / whole, 5.0, "%", timing=True)
    ratio = over_bare(settings, ours, machine)
    found.at_most("step over a bare loop's", ratio, 1.03, "x", timing=True)
    chosen, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    found.note("step without cudnn.benchmark", typical(settings, machine, ours.step), "ms")
    torch.backends.cudnn.benchmark = chosen
    del ours
    kept = ("zero_optimization.stage=1", "harl_fast.shard_one_rank=true")
    sharded = bench(settings, machine, engine=kept)
    found.note("step at ZeRO stage 1", typical(settings, machine, sharded.step), "ms")


def parts(settings: CheckSettings, ours: Bench, machine: Machine) -> dict[str, float]:
    """Return the time of each part of a step in ms, by the step's own objects."""
    state, batch = ours.stepper.state, ours.batch
    assert isinstance(state, TrainState) and state.photometric is not None
    harl, engine, colour = state.harl, state.engine, state.photometric
    now = state.schedule.at(0)
    views = colour.batch(batch.views, ids=batch.ids, epoch=0)
    pinned = noise(state.config, machine, size=len(batch.ids), host=True)
    transfer, pairs = Transfer(machine.device), ema_pairs(harl.target, harl)
    dtype = AUTOCAST.get(state.engine_config.precision)

    def forward() -> Tensor:
        loss: Tensor = engine(views, batch.cells, alpha=now.alpha, beta=now.beta)[0]
        return loss

    @torch.no_grad()
    def target() -> None:
        with torch.autocast(machine.device.type, dtype=dtype, enabled=dtype is not None):
            for view in views:
                harl.target.backbone(view)

    def optimize() -> None:
        if isinstance(state.optimizer, LARS):
            state.optimizer.begin_step()
        state.optimizer.step()

    def taken(work: Work) -> float:
        return typical(settings, machine, work)

    found = {
        "copies from page-locked memory": taken(lambda: transfer(pinned.views)),
        "colours": taken(lambda: colour.batch(batch.views, ids=batch.ids, epoch=0)),
        "target's backbone": taken(target),
        "forward, target's too": taken(forward),
    }
    both = taken(lambda: engine.backward(forward()))
    found["backward"] = both - found["forward, target's too"]
    found["LARS"] = taken(optimize)
    applied = torch.ones((), dtype=torch.bool, device=machine.device)
    found["moving average"] = taken(lambda: ema_update(*pairs, tau=0.99, applied=applied))
    state.optimizer.zero_grad(set_to_none=True)
    return found


def over_bare(settings: CheckSettings, ours: Bench, machine: Machine) -> float:
    """Return a step's time over that of a bare loop of the same operations, in turns."""
    state = ours.stepper.state
    assert isinstance(state, TrainState)
    harl = build_model(state.config).to(machine.device, memory_format=torch.channels_last)
    harl.watched = False
    optimizer = build_optimizer(state.config.optim, harl)
    colour, batch = build_photometric(state.config, machine), ours.batch
    assert colour is not None

    def inputs() -> tuple[list[Tensor], tuple[Tensor, ...]]:
        return colour.batch(batch.views, ids=batch.ids, epoch=0), batch.cells

    dtype = AUTOCAST.get(state.engine_config.precision)
    bare: Iterator[Tensor] = bare_steps(harl, optimizer, inputs, dtype=dtype)
    turns = [
        typical(settings, machine, ours.step) / typical(settings, machine, lambda: next(bare))
        for _ in range(2)
    ]
    return statistics.median(turns)


def compiled(settings: CheckSettings, found: Findings) -> None:
    """Section 5: the same step under torch.compile, at two sizes of views."""
    machine = started()
    sizes = (24, 32) if settings.small else (192, 224)
    schedule = f"data.size_schedule=steps:{sizes[0]},0.5:{sizes[1]}"
    eager = bench(settings, machine, schedule)
    eager.step()
    expected = eager.stepper.meter.drain()["loss"]
    plain = typical(settings, machine, eager.step)
    del eager
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    ours = bench(settings, machine, schedule, "model.compile=true")
    if machine.gpus:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    ours.step()
    loss = ours.stepper.meter.drain()["loss"]
    found.note(f"compilation and first step, {sizes[0]} px", time.perf_counter() - begun, "s")
    found.at_most("loss, relative, compiled vs eager", abs(loss - expected) / abs(expected), 1e-2)
    took = typical(settings, machine, ours.step)
    found.note("step, compiled", took, "ms")
    found.note("eager step over it", plain / took, "x")
    if machine.gpus:
        found.note("peak of the GPU's memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
    state = ours.stepper.state
    assert isinstance(state, TrainState)
    later = noise(state.config, machine, size=len(ours.batch.ids), epoch=state.config.epochs - 1)
    begun = time.perf_counter()
    replace(ours, batch=later).step()
    found.note(f"compilation and first step, {sizes[1]} px", time.perf_counter() - begun, "s")
    ours.step()
    found.holds("both sizes stay compiled", True)  # torch raises where it gives up
