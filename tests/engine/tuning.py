"""A fine-tuning small enough for unit tests: labelled pictures, and a call as the program's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from harl_fast.engine.checkpoint.format import open_checkpoint, write_checkpoint
from harl_fast.engine.finetune import finetune
from harl_fast.engine.loop import Loop
from harl_fast.engine.stop import StopAction
from tests.betons import Item, smooth_noise, write_beton
from tests.engine.support import CPU

CLASSES, BATCH = 4, 16


def tinted_item(index: int) -> Item:
    """Return a picture whose class shows in its colour."""
    label = index % CLASSES
    picture = smooth_noise(index, 72, 80).astype(np.float64)
    tint = np.array([[1, 0.3, 0.3], [0.3, 1, 0.3], [0.3, 0.3, 1], [1, 1, 0.3]])[label]
    mask = np.zeros((64, 64), np.bool_)
    mask[16:48, 16:48] = True
    return (picture * tint).astype(np.uint8), mask, label


def write_sets(folder: Path, *, train: int = 100, val: int = 40) -> Path:
    """Write both splits' containers and return the folder."""
    folder.mkdir(exist_ok=True)
    write_beton(folder / "train.beton", tinted_item, count=train)
    write_beton(folder / "val.beton", lambda index: tinted_item(1000 + index), count=val)
    return folder


def tune(run: Path, *, engine: tuple[str, ...] = (), **changes: Any) -> int:
    """Fine-tune in this process, whose process group stays, and return the exit code.

    A flag of None is left out. stop: called where a program takes its process groups down.
    """
    import harl_fast.engine.deepspeed as ds

    flags = {
        "train_epochs": 2,
        "train_batch_size": BATCH,
        "optimizer": "momentum",
        "learning_rate": 0.05,
        "learning_rate_scaling": "none",
        **changes.pop("flags", {}),
    }
    overrides = ("data.workers=1", "log.every_steps=2", "log.checkpoint_epochs=1")
    overrides += changes.pop("overrides", ())
    flags = {key: value for key, value in flags.items() if value is not None}
    plain = {"preset": None, "flags": flags, "overrides": overrides, "engine_file": CPU}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ds, "stop", changes.pop("stop", lambda: None))
        return finetune(run=run, engine_overrides=engine, **{**plain, **changes})


def saved(run: Path) -> dict[str, Tensor]:
    """Return the tensors of a run's last checkpoint."""
    folder = run / "checkpoints"
    return load_file(folder / f"{(folder / 'latest').read_text().strip()}.safetensors")


def result_of(run: Path, name: str = "*") -> dict[str, Any]:
    """Return the one result in a run."""
    (path,) = (run / "eval").glob(f"{name}/result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def leave_at(step: int) -> Callable[[Loop], StopAction]:
    """Return what `Loop._agree` is to be replaced by for a stop after a step."""
    agree = Loop._agree
    return lambda loop: StopAction.LEAVE if loop.stepper.step == step else agree(loop)


def trained_further(run: Path, folder: Path) -> Path:
    """Write a run as it is after more training, with other weights, and return its folder."""
    shutil.copytree(run, folder)
    last = open_checkpoint(folder)
    tensors = load_file(last.path)
    tensors["online.backbone.conv1.weight"] *= 2.0
    record = last.record.model_copy(update={"step": 13})
    own = {"tensors_sha256", "record_sha256", "tensors_bytes", "code", "created"}
    write_checkpoint(
        folder / "checkpoints",
        tensors=tensors,
        record={name: value for name, value in record if name not in own},
    )
    return folder
