"""Result folders with chosen accuracies, as evaluations write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harl_fast.eval.metrics import predictions, scores
from harl_fast.eval.results import Result, write_result


def make_result(
    folder: Path,
    *,
    accuracy: float | Sequence[float],
    classes: Sequence[str] = ("cat", "dog", "fish", "newt", "owl", "pig"),
    count: int = 600,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    step: int = 100,
    run: str = "",
    **others: Any,
) -> Result:
    """Write a result whose samples are right with a probability (of each class), and return it.

    Whether sample i is right depends on ``seed`` and i alone, so results of one seed are paired.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(classes)
    chance = torch.as_tensor(accuracy, dtype=torch.float32).expand(len(classes))[labels]
    logits = torch.rand(count, len(classes), generator=random)
    right = torch.rand(count, generator=random) < chance
    # Wrong ones mostly name the next class, so that there are pairs that are often confused.
    named = torch.where(right, labels, (labels + 1) % len(classes))
    logits[torch.arange(count), named] += 5.0
    found = predictions(logits, labels)
    values = _facts(folder, classes, count=count, step=step, run=run)
    values["data"] |= data or {}
    values["preprocessing"] |= preprocessing or {}
    measured = scores(found, classes=len(classes))
    result = Result(
        **{
            **values,
            "metrics": measured,
            "predictions": found,
            "ids": torch.arange(count),
            "names": [f"{classes[int(label)]}/{i:04d}.jpg" for i, label in enumerate(labels)],
            "seed": 0,
            "knn": {"20": measured},
            "choice": {"lr": 0.1, "weight_decay": 0.0},
            **others,
        }
    )
    write_result(folder, result)
    return result


def _facts(
    folder: Path, classes: Sequence[str], *, count: int, step: int, run: str
) -> dict[str, Any]:
    return {
        "protocol": "cached",
        "headline": "mean_per_class",
        "data": {
            "name": "pets",
            "classes": list(classes),
            "train_sha256": "a" * 64,
            "val_sha256": "b" * 64,
            "train_count": 2 * count,
            "val_count": count,
            "split": "official",
        },
        "checkpoint": {
            "path": f"{run or folder.parent.parent}/checkpoints/step-{step}.safetensors",
            "run": run or str(folder.parent.parent),
            "step": step,
            "weights_sha256": "c" * 64,
            "receipt": "318/318 tensors, torchvision names",
        },
        "preprocessing": {
            "size_px": 64, "crop": 0.875, "mean": [0.5] * 3, "std": [0.2] * 3, "precision": "fp32",
        },
        "settings": {"epochs": 100, "knn_temperature": 0.07},
    }  # fmt: skip
