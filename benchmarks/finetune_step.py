"""Steps of fine-tuning: more heads, a frozen part, and our loop against bare PyTorch's.

V6, V7 and V8 of `make bench-eval`.
"""

from __future__ import annotations

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
SECONDS = 4.0
"""Of one contender's turn."""
LOG_EVERY = 50
"""Steps between readings of the meter, the configuration's default."""
RATIOS = (
    # A time over a time: how many times longer a step of the second takes.
    report.Ratio("V6", "8 heads over 1, frozen network", "heads1", ("heads8",), 1.10, 1.03, True),
    report.Ratio("V7", "boundary 3 over boundary -1", "all", ("boundary3",), 0.65, 0.55, True),
    report.Ratio("V8", "fine-tuning step over a bare loop's", "bare", ("all",), 1.03, 1.01, True),
)


def plans(*, threads: int) -> dict[str, dict[str, Any]]:
    """Return the contenders' settings, for `rounds.Field`."""
    common = {
        "module": "finetune_step",
        "steps": True,
        "threads": threads,
        "batch": BATCH,
        "lead": 1,
        "environment": {"OMP_NUM_THREADS": str(threads)},
    }
    return {
        "all": common | {"boundary": -1, "heads": 1},
        "bare": common | {"boundary": -1, "heads": 1, "bare": True},
        "boundary3": common | {"boundary": 3, "heads": 1},
        "heads1": common | {"boundary": 4, "heads": 1},
        "heads8": common | {"boundary": 4, "heads": 8},
    }


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
        train_batch_size=settings["batch"],
        train_steps=10**6,
        image_size=SIZE_PX,
        model=ModelConfig(arch="resnet18"),
        data={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},  # type: ignore[arg-type]
    )


def fixed_batch(size: int) -> Batch:
    """Return a batch of noise in memory, as the loader would hand it over on a CPU."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, SIZE_PX, SIZE_PX, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(size) % CLASSES
    return Batch((images,), (), labels, torch.arange(size))


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (samples, figures) per step for ever.

    settings: boundary, heads, batch, threads; bare: by a plain loop.
    """
    step_setup.quiet_threads(settings)
    config, batch = configuration(settings), fixed_batch(settings["batch"])
    classifier = classifier_of(config, classes=CLASSES)
    steps = _bare(config, classifier, batch) if settings.get("bare") else _ours(
        config, classifier, batch, size=settings["batch"]
    )  # fmt: skip
    for figures in steps:
        yield settings["batch"], figures


def _ours(
    config: FinetuneConfig, classifier: Classifier, batch: Batch, *, size: int
) -> Iterator[dict[str, float]]:
    machine = this_machine()
    ds.start(machine, timeout_minutes=1)
    state = build(
        config,
        step_setup.engine_config("fp32", batch=size),
        machine,
        loader=step_setup.endless(size),
        classifier=classifier,
        facts={},
    )
    stepper = TuneStepper(state)
    while True:
        state.module.watched = (stepper.step + 1) % LOG_EVERY == 0
        stepper.advance([batch], epoch=0)
        yield stepper.meter.take() if stepper.step % LOG_EVERY == 0 else {}


def _bare(
    config: FinetuneConfig, classifier: Classifier, batch: Batch
) -> Iterator[dict[str, float]]:
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
        yield {}


def measured(
    bars: Container[str], *, threads: int, rounds: int, logs: Path
) -> tuple[report.Rounds, list[report.Row]]:
    """Return all rounds of the contenders that some of the bars need, and the bars' lines."""
    ratios = [ratio for ratio in RATIOS if ratio.bar in bars]
    needed = {name for ratio in ratios for name in (ratio.ours, *ratio.peers)}
    made = {name: plan for name, plan in plans(threads=threads).items() if name in needed}
    found: dict[str, list[Any]] = {}
    for _ in range(rounds):
        # Where a process's memory happens to lie moves its rate by 3 %: fresh ones every round.
        with Field(made, threads=1, logs=logs, warm_s=1.0) as field:
            for name, answers in field.rounds(1, seconds=SECONDS).items():
                found.setdefault(name, []).extend(answers)
    return found, report.ratio_rows(report.rates(found), ratios)
