"""A run small enough for unit tests: a thin ResNet-18 on 32 px views of a hundred pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harl_fast.config import RunConfig, load_config
from harl_fast.data.loader import Batch
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.engine.checkpoint.format import Checkpoint
from harl_fast.engine.config import EngineConfig, read_engine_file, settle
from harl_fast.engine.machine import Machine
from harl_fast.engine.monitoring import Sheet
from harl_fast.engine.state import TrainState
from harl_fast.engine.trainer import Stepper, Trainer, build
from harl_fast.optim.build import init_momentum
from harl_fast.runfiles import RunFolder

ROOT = Path(__file__).parents[2]
CPU = ROOT / "ds_configs" / "cpu.json"

TINY = """\
epochs: 2
data:
  workers: 1
  views:
    - {size_px: 32, scale: [0.2, 1.0]}
    - {size_px: 32, scale: [0.2, 1.0], blur_p: 0.1, solarize_p: 0.2}
model:
  arch: resnet18
  width: 0.125
  last_stride: 1
  projector_hidden: 32
  projector_out: 16
  predictor_hidden: 32
target: {tau_start: 0.9}
optim: {lr: 2.0, warmup_epochs: 0.5}
log: {every_steps: 2, checkpoint_epochs: 1}
"""
BATCH = 16
STEPS = 6
"""Of one epoch: a hundred pictures in batches of 16."""
STAGES = [0, 1, 2]
"""Of ZeRO, those that are supported."""


def tiny_config(folder: Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the tiny run's configuration, for `FakeLoader`, which does not colour."""
    return load_config(str(tiny_file(folder)), overrides=["data.colour=device", *overrides])


def tiny_file(folder: Path) -> Path:
    """Write the tiny run's configuration and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


def engine_config(*, ranks: int = 1, overrides: Sequence[str] = ()) -> EngineConfig:
    """Return the shipped CPU file with the tiny batch and overrides, settled."""
    # One rank must go through ZeRO's buffers here as several do.
    own = [f"train_batch_size={BATCH}", "harl_fast.shard_one_rank=true"]
    file = read_engine_file(CPU, overrides=[*own, *overrides])
    return settle(file, ranks=ranks, source="cpu.json")


def contiguous(parts: TrainState) -> None:
    """Give stage 0 the memory layout that ZeRO's shards have, so that convolutions round alike."""
    parts.harl.to(memory_format=torch.contiguous_format)
    init_momentum(parts.optimizer)


@torch.no_grad()
def disturb(weights: Iterable[Tensor], *, precision: torch.dtype = torch.float32) -> None:
    """Change each weight by one unit in the last place of a precision, up or down at random.

    Weights under ZeRO do not stay so: it steps from copies of its own.
    """
    generator = torch.Generator().manual_seed(1)
    for weight in weights:
        signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
        weight.mul_(1.0 + signs * torch.finfo(precision).eps)


def disturb_both(parts: TrainState, *, precision: torch.dtype = torch.float32) -> None:
    """Do so to the online and the target network."""
    disturb([*parts.harl.parameters(), *parts.harl.target.parameters()], precision=precision)


@torch.no_grad()
def distances(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Return tensor by tensor the norm of what two networks differ by."""
    return {name: float((second[name].double() - t.double()).norm()) for name, t in first.items()}


def assert_rounding_alone(found: dict[str, float], *, control: dict[str, float]) -> None:
    """Check that two runs are no further apart than rounding moves runs of these steps.

    found: their distances. control: those that `disturb` alone has made, on this processor, of a
    unit in the last place of every weight. Rounding in another order starts with less but comes
    again in every step, and of eight biases one disturbance may happen to say little: ten times
    the control's distances are allowed.
    """
    assert found.keys() == control.keys() and len(found) > 50
    for name, distance in found.items():
        assert distance <= 10.0 * control[name], (name, distance, control[name])


class FakeLoader:
    """Batches of noise that depend on (epoch, step, micro step) alone, without a container."""

    manifest: Any = SimpleNamespace(beton_sha256="0" * 64, count=BATCH * STEPS, store={})
    count = BATCH * STEPS
    damage = SimpleNamespace(count=0)
    steps = STEPS

    def __init__(self, *, micro: int = BATCH, ranks: int = 1) -> None:
        self.micro, self.epoch, self.step = micro, 0, 0
        self.accumulation = BATCH // (micro * ranks)
        self.views = tuple(ViewGeometry(size_px=32, cells=2, scale=(0.2, 1.0)) for _ in range(2))

    def set_views(self, views: Sequence[ViewGeometry], *, colour: Colouring | None = None) -> float:
        """Give other sizes from the next batch on."""
        self.views = tuple(views)
        return 0.25

    def state_dict(self) -> dict[str, int | str]:
        """Return the position."""
        return {"seed": 0, "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start from a position."""
        self.epoch, self.step = state["epoch"], state["step"]

    def copied(self) -> None:
        """No memory is filled again."""

    def close(self) -> None:
        """Nothing is open."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch."""
        parts = self.accumulation
        for number in range(self.step * parts, self.steps * parts):
            yield self.batch(self.epoch * self.steps * parts + number)

    def batch(self, number: int) -> Batch:
        """Return one micro batch."""
        rng = np.random.default_rng(number)
        sizes = [(view.size_px, view.cells) for view in self.views]
        views = [rng.integers(0, 256, (self.micro, s, s, 3), dtype=np.uint8) for s, _ in sizes]
        cells = [rng.random((self.micro, c, c), dtype=np.float32) for _, c in sizes]
        ids = np.arange(self.micro) + number * self.micro
        return Batch(
            tuple(torch.from_numpy(view) for view in views),
            tuple(torch.from_numpy(grid) for grid in cells),
            torch.zeros(self.micro, dtype=torch.int64),
            torch.from_numpy(ids),
        )


def stepper(
    machine: Machine,
    folder: Path,
    *,
    stage: int = 0,
    engine: tuple[str, ...] = (),
    config: tuple[str, ...] = (),
    micro: int = BATCH,
) -> Stepper:
    """Return the tiny run's steps over `FakeLoader`, at the global batch of 16."""
    overrides = (
        f"zero_optimization.stage={stage}",
        f"train_micro_batch_size_per_gpu={micro}",
        *engine,
    )
    loader = FakeLoader(micro=micro)
    parts = build(
        tiny_config(folder, overrides=config),
        engine_config(overrides=overrides),
        machine,
        loader=loader,  # type: ignore[arg-type]
    )
    return Stepper(parts)


def prepare(
    machine: Machine,
    folder: Path,
    *,
    loader: Any = None,
    engine: tuple[str, ...] = (),
    config: tuple[str, ...] = (),
    weights: Checkpoint | None = None,
    checkpoint: Checkpoint | None = None,
    quiet: bool = False,
    sheet: Sheet | None = None,
) -> Trainer:
    """Return the tiny run, ready to train in a folder; checkpoint: from which it goes on."""
    folder.mkdir(exist_ok=True)
    state = build(
        tiny_config(folder, overrides=config),
        engine_config(overrides=engine),
        machine,
        loader=loader or FakeLoader(),
        weights=weights,
        checkpoint=checkpoint,
    )
    step = 0 if checkpoint is None else checkpoint.record.step
    return Trainer(state, RunFolder(folder), step=step, quiet=quiet, sheet=sheet)


def advance(run: Stepper, count: int = 1) -> None:
    """Do the next steps."""
    accumulation = run.state.engine_config.batches.accumulation
    loader: FakeLoader = run.state.loader  # type: ignore[assignment]
    for _ in range(count):
        first = run.step * accumulation
        run.advance([loader.batch(first + at) for at in range(accumulation)], epoch=0)


def weights(run: Stepper) -> dict[str, Tensor]:
    """Return a copy of the online network's weights."""
    return {name: p.detach().clone() for name, p in run.state.harl.named_parameters()}


def target(run: Stepper) -> dict[str, Tensor]:
    """Return a copy of the target network's weights."""
    return {name: p.detach().clone() for name, p in run.state.harl.target.named_parameters()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Check that two networks have the same bits."""
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
