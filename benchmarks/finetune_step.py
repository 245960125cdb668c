"""Steps of fine-tuning: more heads, a frozen part, and our loop against bare PyTorch's.

V6, V7 and V8 of `make bench-eval`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import report, step_setup
from benchmarks.rounds import Field
from harl_fast.config import ModelConfig
from harl_fast.data.loader import Batch
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.machine import keep_freed_memory, this_machine
from harl_fast.engine.supervised import TuneStepper, build, classifier_of
from harl_fast.finetuning import FinetuneConfig
from harl_fast.model.classifier import Classifier

SIZE_PX, CLASSES, BATCH = 96, 100, 64
"""Caltech-101's photos as `make bench-eval` shows them."""
TURN_STEPS, CYCLES = 3, 3
"""Steps of one loop before it is another's turn, and cycles of turns A B B A in a round."""
LOG_EVERY = 50
"""Steps between readings of the meter, the configuration's default."""
RATIOS = (
    # A time over a time: how many times longer a step of the second takes.
    report.Ratio("V6", "8 heads over 1, frozen network", "heads1", ("heads8",), 1.10, 1.03, True),
    report.Ratio("V7", "boundary 3 over boundary -1", "all", ("boundary3",), 0.65, 0.55, True),
    report.Ratio("V8", "fine-tuning step over a bare loop's", "bare", ("all",), 1.03, 1.01, True),
)
LOOPS: dict[str, dict[str, Any]] = {
    "all": {"boundary": -1, "heads": 1},
    "bare": {"boundary": -1, "heads": 1, "bare": True},
    "boundary3": {"boundary": 3, "heads": 1},
    "heads1": {"boundary": 4, "heads": 1},
    "heads8": {"boundary": 4, "heads": 8},
}
"""The loops that the ratios compare."""


def configuration(settings: dict[str, Any]) -> FinetuneConfig:
    """Return the fine-tuning that settings describe; no warm-up, so that every step moves."""
    heads = settings["heads"]
    return FinetuneConfig(
        fine_tune_after_block=settings["boundary"],
        optimizer="momentum",
        learning_rate=0.01,
        learning_rate_scaling="none",
        head_lr_grid=(1.0,) * heads,
        hold_out=heads - 1,
        train_batch_size=BATCH,
        train_steps=10**6,
        image_size=SIZE_PX,
        model=ModelConfig(arch="resnet18"),
        data={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},  # type: ignore[arg-type]
    )


def fixed_batch() -> Batch:
    """Return a batch of noise in memory, as the loader would hand it over on a CPU."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE_PX, SIZE_PX, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % CLASSES
    return Batch((images,), (), labels, torch.arange(BATCH))


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, seconds per step of each loop) per cycle for ever.

    settings: loops, two names of `LOOPS`; threads. A cycle's turns are in the order A B B A, so
    that a machine that grows slower or faster in between does so for both.
    """
    step_setup.quiet_threads(settings)
    batch = fixed_batch()
    loops = {name: _steps(LOOPS[name], batch) for name in settings["loops"]}
    while True:
        taken = dict.fromkeys(loops, 0.0)
        for name in (*loops, *reversed(loops)):
            begun = time.perf_counter()
            for _ in range(TURN_STEPS):
                next(loops[name])
            taken[name] += time.perf_counter() - begun
        turns = 2 * TURN_STEPS
        yield turns * len(loops) * BATCH, {name: s / turns for name, s in taken.items()}


def _steps(settings: dict[str, Any], batch: Batch) -> Iterator[None]:
    config = configuration(settings)
    classifier = classifier_of(config, classes=CLASSES)
    loop = _bare if settings.get("bare") else _ours
    return loop(config, classifier, batch)


def _ours(config: FinetuneConfig, classifier: Classifier, batch: Batch) -> Iterator[None]:
    machine = this_machine()
    if not ds.started():
        ds.start(machine, timeout_minutes=1)
    state = build(
        config,
        step_setup.engine_config("fp32", batch=BATCH),
        machine,
        loader=step_setup.endless(BATCH),
        classifier=classifier,
        facts={},
    )
    stepper = TuneStepper(state)
    while True:
        state.module.watched = (stepper.step + 1) % LOG_EVERY == 0
        stepper.advance([batch], epoch=0)
        if stepper.step % LOG_EVERY == 0:
            stepper.meter.drain()
        yield


def _bare(config: FinetuneConfig, classifier: Classifier, batch: Batch) -> Iterator[None]:
    """Do the same operations in a loop without engine, schedules and meter."""
    keep_freed_memory()  # as `build` does: the loop is measured, not the allocator
    classifier.to(memory_format=torch.channels_last)
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trained, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True
    )
    while True:
        rows: Tensor = classifier.backbone(batch.views[0]).mean((2, 3))
        loss = functional.cross_entropy(classifier.heads[0](rows), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def measured(
    bars: Container[str], *, threads: int, rounds: int, logs: Path
) -> tuple[report.Rounds, list[report.Row]]:
    """Return all rounds of each bar, as seconds per step of its loops, and the bars' lines.

    A bar's two loops take turns within one process: the rates of two processes of the *same* loop
    differ by up to 5 % for as long as they live, by where their memory happens to lie. Every round
    has a fresh process.
    """
    found: dict[str, list[Any]] = {}
    rows: list[report.Row] = []
    environment = {"OMP_NUM_THREADS": str(threads)}
    for ratio in (each for each in RATIOS if each.bar in bars):
        loops = [ratio.ours, *ratio.peers]
        plan = {"module": "finetune_step", "steps": True, "lead": 1, "threads": threads}
        plan |= {"loops": loops, "environment": environment}
        for _ in range(rounds):
            with Field({ratio.bar: plan}, threads=1, logs=logs, warm_s=1.0) as field:
                turns = field.contenders[ratio.bar].ask(do="check", batches=CYCLES)
            means = {n: statistics.fmean(each[n] for each in turns["figures"]) for n in loops}
            found.setdefault(ratio.bar, []).append({**means, "others": turns["others"]})
        speeds = {name: [1.0 / turn[name] for turn in found[ratio.bar]] for name in loops}
        rows.extend(report.ratio_rows(speeds, [ratio]))
    return found, rows
