"""Fine-tune a thin ResNet for 20 steps on any number of ranks; the weights go to a file.

Arguments: folder, boundary, ZeRO stage, whether BatchNorm is shared, a name. Batches depend on the
step alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from harl_fast.config import ModelConfig
from harl_fast.data.loader import Batch
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.machine import this_machine
from harl_fast.engine.supervised import TuneStepper, build, classifier_of
from harl_fast.finetuning import FinetuneConfig
from tests.engine.support import FakeLoader, disturb, engine_config

ROWS, STEPS, CLASSES = 16, 20, 5


def rows_of(step: int, *, rank: int, ranks: int) -> Batch:
    """Return this rank's part of a step's images."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(ROWS, 3, 32, 32, generator=generator)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    part = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    return Batch((images[part],), (), labels[part], torch.arange(ROWS)[part])


def main(out: Path, boundary: int, stage: int, shared: bool, name: str) -> None:
    """Train and write the weights."""
    here = this_machine()
    ds.start(here, timeout_minutes=10)
    config = FinetuneConfig(
        fine_tune_after_block=boundary,
        ft_proj_selector=1,
        num_proj_layers=2,
        global_bn=shared,
        optimizer="lars" if boundary == 0 else "momentum",
        learning_rate=0.01,
        learning_rate_scaling="none",
        zero_init_logits_layer=False,
        image_size=32,
        model=ModelConfig(arch="resnet18", width=0.125, projector_hidden=32, projector_out=16),
        data={"mean": (0.5,) * 3, "std": (0.5,) * 3},  # type: ignore[arg-type]
    )
    classifier = classifier_of(config, classes=CLASSES)
    if name == "disturbed":
        disturb(classifier.parameters())
    overrides = (f"zero_optimization.stage={stage}", f"train_batch_size={ROWS}")
    state = build(
        config,
        engine_config(ranks=here.ranks, overrides=overrides),
        here,
        loader=FakeLoader(),  # type: ignore[arg-type]
        classifier=classifier,
        facts={},
    )
    stepper = TuneStepper(state)
    for step in range(STEPS):
        stepper.advance([rows_of(step, rank=here.rank, ranks=here.ranks)], epoch=0)
    assert int(stepper.skipped) == 0
    found = {key: tensor.clone() for key, tensor in state.module.state_dict().items()}
    if here.rank == 0:
        save_file(found, out / f"{name}.safetensors")
    ds.stop()


if __name__ == "__main__":
    folder, *numbers, label = sys.argv[1:]
    first, second, third = map(int, numbers)
    main(Path(folder), first, second, bool(third), label)
