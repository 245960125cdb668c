"""Sections 0, 1, 2 and 6 of the GPU check: what is there, right numbers, no waits, two ranks.

Their steps are `trainer.Stepper`'s on a ResNet-18 at 64 px, a fixed batch and fp32 without TF32, so
that a GPU differs from a CPU by the order of sums alone.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks import step_setup as setup
from benchmarks.gpu_sections import CheckSettings, Findings
from harl_fast.collectives import wait_for_all
from harl_fast.config import RunConfig, override_config
from harl_fast.data.views.color_device import Photometric, draw, fused_kernels
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.launchers import note_place
from harl_fast.engine.machine import Machine, this_machine
from harl_fast.engine.snapshot import collect_state
from harl_fast.engine.stop import process_age_s
from harl_fast.engine.trainer import Stepper, build
from harl_fast.engine.views import build_loader, build_photometric
from harl_fast.errors import HarlError
from harl_fast.optim.build import init_momentum
from harl_fast.steps import ROOT
from harl_fast.supervision import run_below

STEPS = 3
DEMO_IMAGES, DEMO_PX = 4800, 96
"""Three quarters are for training: 7 steps of 512, which is more than the loader makes ahead."""
SMALL_IMAGES, SMALL_PX = 200, 64
BATCH, SMALL_BATCH = 64, 16
SMALL = ("model.width=0.125", "model.projector_hidden=64", "model.predictor_hidden=64")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of BatchNorm, which a forward pass moves, whatever the gradient is."""
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
"""What a profiler calls a host that waits for a device."""


def started() -> Machine:
    """Return this process's place; it has joined the only rank's group then."""
    machine = this_machine()
    if not ds.started():
        ds.start(machine, timeout_minutes=5)
    return machine


def run_config(settings: CheckSettings, *changes: str) -> RunConfig:
    """Return the configuration of the sections' steps."""
    reduced = SMALL if settings.small else ()
    return override_config(setup.run_config("byol+f_loss"), [*reduced, *changes])


def batch_of(settings: CheckSettings) -> int:
    """Return how many images a step has."""
    return SMALL_BATCH if settings.small else BATCH


def stepper(
    settings: CheckSettings,
    machine: Machine,
    *,
    stage: int = 0,
    precision: str = "fp32",
    optimizer: str = "lars",
    engine: Sequence[str] = (),
) -> Stepper:
    """Return steps at a ZeRO stage, whose buffers one rank keeps, from the same weights each time.

    Weights are contiguous at every stage: convolutions of another layout sum in another order.
    """
    size = batch_of(settings)
    changes = (f"zero_optimization.stage={stage}", "harl_fast.shard_one_rank=true", *engine)
    config = setup.engine_config(precision, batch=size, overrides=changes, ranks=machine.ranks)
    config_run = run_config(settings, f"optim.name={optimizer}")
    state = build(config_run, config, machine, loader=setup.endless(size))
    state = replace(state, photometric=None)  # the batch is coloured and normalised
    state.harl.to(memory_format=torch.contiguous_format)
    init_momentum(state.optimizer)
    return Stepper(state)


def advance(run: Stepper, count: int) -> None:
    """Do steps on the fixed batch."""
    size = run.state.engine_config.batches.batch_micro
    batch = setup.fixed_batch(batch=size, channels_last=True, seed=run.state.machine.rank)
    for _ in range(count):
        run.advance([batch], epoch=0)


def weights(run: Stepper) -> dict[str, Tensor]:
    """Return copies of all that a checkpoint holds of networks and optimizer, in host memory."""
    state = collect_state(run.state)
    return {n: t.cpu().clone() for n, t in state.items() if not n.startswith(("ranks.", "scale."))}


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the norm of two sets of tensors' difference over the norm of the second."""
    names = [name for name in second if second[name].is_floating_point()]
    apart = math.hypot(*(float((first[n].double() - second[n].double()).norm()) for n in names))
    return apart / math.hypot(*(float(second[name].double().norm()) for name in names))


def exactly() -> None:
    """Let the GPU compute in fp32 as a CPU does, and the same way each time."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def imports(settings: CheckSettings, found: Findings) -> None:
    """Section 0: versions, kernels, page-locked buffers; the set that later sections train on."""
    machine = this_machine()
    found.note("interpreter and imports", process_age_s(), "s")
    accelerator = ds.deepspeed.accelerator.get_accelerator().device_name()
    found.holds(f"DeepSpeed's accelerator is {settings.device}", accelerator == settings.device)
    if machine.gpus:
        facts = torch.cuda.get_device_properties(0)
        found.fact("gpu", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB")
        found.fact("gpus", machine.gpus)
        found.fact("cuda", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        found.holds("Triton compiles the colours", fused_kernels(machine.device) is not None)
    data = Path(settings.data)
    if not (data / "train.json").exists():
        images, side = (SMALL_IMAGES, SMALL_PX) if settings.small else (DEMO_IMAGES, DEMO_PX)
        begun, size = time.monotonic(), ["--demo-images", str(images), "--demo-size", str(side)]
        command = [sys.executable, "-m", "preprocess.beton", "--out", str(data), *size]
        if code := run_below(command, cwd=ROOT):
            raise HarlError(f"preprocess.beton ended with {code}")
        found.note("demo set drawn", time.monotonic() - begun, "s")
    begun = time.monotonic()
    config = setup.engine_config("fp32", batch=batch_of(settings))
    loader = build_loader(run_config(settings), config, machine, data=data)
    batch = next(iter(loader))
    found.note("first batch, decoder compiled if it was not", time.monotonic() - begun, "s")
    if machine.gpus:
        locked = all(view.is_pinned() for view in (*batch.views, *batch.cells))
        found.holds("the loader's buffers are page-locked", locked)


def numbers(settings: CheckSettings, found: Findings) -> None:
    """Section 1: device against CPU, ZeRO's stages against each other, and steps without effect."""
    kept = settings.work / "reference.safetensors"
    kept.parent.mkdir(parents=True, exist_ok=True)
    reference(settings, kept)
    machine = started()
    exactly()
    colours(settings, found, machine)
    run = stepper(settings, machine)
    first, expected = trajectory(run), load_file(kept)
    for name in ("loss", "grad_norm"):
        error = (first[name] - expected[name]).abs() / expected[name].abs()
        found.at_most(f"{name} of {STEPS} steps, relative, device vs CPU", float(error.max()), 1e-4)
    networks = {n: t for n, t in expected.items() if n.startswith(("online.", "target."))}
    apart = distance(first, networks)
    found.at_most(f"weights after {STEPS} LARS steps, device vs CPU", apart, 1e-4)
    plain = weights(run)
    for stage in (1, 2):
        other = stepper(settings, machine, stage=stage)
        advance(other, STEPS)
        apart = distance(weights(other), plain)
        found.at_most(f"weights and momentum, ZeRO stage {stage} vs 0", apart, 1e-6)
    without_effect(settings, found, machine)


def reference(settings: CheckSettings, out: Path) -> None:
    """Write the steps' figures and weights as a CPU makes them, by a process that sees no GPU."""
    place: dict[str, str] = {}
    note_place(place)  # names what a rank's environment has, and this process's own may have
    env = {name: value for name, value in os.environ.items() if name not in place}
    command = [sys.executable, "-m", "benchmarks.gpu_numbers", json.dumps(vars(settings)), str(out)]
    subprocess.run(command, cwd=ROOT, env=env | {"CUDA_VISIBLE_DEVICES": ""}, check=True)


def trajectory(run: Stepper) -> dict[str, Tensor]:
    """Return loss and gradient norm of the next steps, and `weights` after them."""
    figures = []
    for _ in range(STEPS):
        advance(run, 1)
        figures.append(run.meter.drain())
    rows = {n: torch.tensor([each[n] for each in figures]) for n in ("loss", "grad_norm")}
    return rows | weights(run)


def colours(settings: CheckSettings, found: Findings, machine: Machine) -> None:
    """Compare a batch's colours by the device, by the loader, and by the plain form of both."""
    views = {}
    for where in ("loader", "device"):
        config = run_config(settings, f"data.colour={where}")
        engine = setup.engine_config("fp32", batch=batch_of(settings))
        loader = build_loader(config, engine, machine, data=Path(settings.data))
        batch = next(iter(loader))
        raw = [view.to(machine.device) for view in batch.views]
        colour = build_photometric(config, machine)
        if colour is None:
            views["the loader's"] = raw
        else:
            views["own"] = colour.batch(raw, ids=batch.ids, epoch=0)
            views["the plain form's"] = plain_colours(colour, raw, batch.ids)
        loader.close()
    std = torch.tensor(config.data.std, device=machine.device)[:, None, None]
    for what, limit in (("the loader's", 2.0), ("the plain form's", 0.1)):
        pairs = zip(views["own"], views[what], strict=True)
        error = 255.0 * max(float(((a - b).abs() * std).max()) for a, b in pairs)
        found.at_most(f"colours on the device vs {what}", error, limit, "/255")


def plain_colours(colour: Photometric, views: Sequence[Tensor], ids: Tensor) -> list[Tensor]:
    """Return a batch's views coloured operation by operation, as where there is no Triton."""
    found = []
    for number, (view, policy) in enumerate(zip(views, colour.policies, strict=True)):
        drawn = draw(policy, ids, seed=colour.seed, epoch=0, view=number)
        found.append(colour.normalize(colour.colour(view, drawn, policy=policy)))
    return found


def without_effect(settings: CheckSettings, found: Findings, machine: Machine) -> None:
    """Break a gradient under fp32, and overflow under fp16."""
    run = stepper(settings, machine, stage=1)
    advance(run, 2)
    before = {n: tensor for n, tensor in weights(run).items() if not n.endswith(STATISTICS)}
    hook = run.state.harl.backbone.conv1.weight.register_hook(lambda grad: grad * float("nan"))
    advance(run, 1)
    hook.remove()
    after = weights(run)
    changed = sum(not torch.equal(after[name], tensor) for name, tensor in before.items())
    found.at_most("tensors that a NaN gradient changes", changed, 0.0)
    advance(run, 1)
    good = weights(run)
    moved = sum(not torch.equal(good[name], tensor) for name, tensor in before.items())
    found.at_least("tensors that the next step changes", moved, 0.9 * len(before))
    highest = ("fp16.initial_scale_power=32", "fp16.hysteresis=1")
    run = stepper(settings, machine, precision="fp16", engine=highest)
    assert run.state.scale is not None
    scale = float(run.state.scale.factor)
    advance(run, 1)
    found.at_most("loss scale after an overflow", float(run.state.scale.factor) / scale, 0.5, "x")


def waits(settings: CheckSettings, found: Findings) -> None:
    """Section 2: no step makes the host wait for the device."""
    machine = started()
    every = ((0, "bf16"), (1, "bf16"), (0, "fp16"), (1, "fp16"))
    for optimizer in ("lars", "sgd", "adamw"):
        for stage, precision in every[1:2] if settings.small else every:
            run = stepper(settings, machine, stage=stage, precision=precision, optimizer=optimizer)
            advance(run, 3)
            count = synchronisations(run)
            found.at_most(f"waits: {optimizer}, stage {stage}, {precision}", count, 0.0)
    if machine.gpus:
        pageable_copies(found, machine)


def synchronisations(run: Stepper) -> int:
    """Return how often some steps wait: 1 if torch refuses one, else what a profiler saw."""
    on_gpu = run.state.machine.gpus > 0
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        advance(run, 5)
    except RuntimeError as error:
        if "synchroni" not in str(error):
            raise
        traceback.print_exc()
        return 1
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    span = torch.profiler.record_function("steps")
    with torch.profiler.profile(activities=kinds) as profile, span:
        advance(run, 2)
    events, host = profile.events(), torch.autograd.DeviceType.CPU
    # The profiler itself waits for the device before and after them.
    window = next(e.time_range for e in events if e.name == "steps" and e.device_type == host)
    within = [e for e in events if window.start <= e.time_range.start <= window.end]
    seen = [event for event in within if event.name in WAITING]
    for event in seen:
        print(f"waited: {event.name}", file=sys.stderr)
    return len(seen)


def pageable_copies(found: Findings, machine: Machine) -> None:
    """Note how long a copy from pageable memory holds up the host while the device is busy."""
    for size in (1 << 10, 1 << 16, 1 << 20):
        source = torch.zeros(size, dtype=torch.uint8)
        source.to(machine.device)
        torch.cuda.synchronize()
        torch.cuda._sleep(10**8)  # 50 ms and more
        begun = time.perf_counter()
        source.to(machine.device, non_blocking=True)
        passed = 1e3 * (time.perf_counter() - begun)
        torch.cuda.synchronize()
        found.note(f"pageable copy of {size >> 10} KB, device busy", passed, "ms")


def two_ranks(settings: CheckSettings, found: Findings) -> None:
    """Section 6: ZeRO 1 and stage 0 on two ranks of one device, over gloo: NCCL refuses that."""
    out = settings.work / "two-ranks.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    place: dict[str, str] = {}
    note_place(place)
    spawn(_rank, args=(vars(settings), place, str(out)), nprocs=2)
    apart = json.loads(out.read_text())
    found.at_most("weights and momentum, two ranks, ZeRO stage 1 vs 0", apart, 1e-6)


def _rank(rank: int, settings: Mapping[str, str], place: Mapping[str, str], out: str) -> None:
    given = CheckSettings(**settings)
    os.environ.update(place | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"})
    init = functools.partial(ds.deepspeed.init_distributed, dist_backend="gloo")
    ds.deepspeed.init_distributed = init
    machine = this_machine()  # both take the device of local rank 0
    ds.start(machine, timeout_minutes=1)
    exactly()
    found = []
    for stage in (0, 1):
        run = stepper(given, machine, stage=stage)
        advance(run, STEPS)
        found.append(weights(run))
    if rank == 0:
        Path(out).write_text(json.dumps(distance(found[1], found[0])))
    wait_for_all()
    os._exit(0)  # gloo's threads abort some orderly exits


if __name__ == "__main__":
    chosen = CheckSettings(**json.loads(sys.argv[1]))
    exactly()
    save_file(trajectory(stepper(chosen, started())), sys.argv[2])
