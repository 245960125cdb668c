"""What tests of several tools share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harl_fast.eval.metrics import Predictions, Score
from harl_fast.eval.results import Head, Result, write_result

CLASSES = ["cat", "dog", "owl"]
INPUTS: dict[str, Any] = {
    "size_px": 224,
    "crop": 0.875,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "precision": "fp32",
}


def result_of(
    run: Path,
    *,
    weights_sha256: str,
    dim: int = 512,
    receipt: str = "other weights",
    seen: Mapping[str, Any] = {},
) -> Path:
    """Write a result of three classes as an evaluation does; return its result.json.

    seen: values of its preprocessing in place of ImageNet's.
    """
    generator = torch.Generator().manual_seed(1)
    head = Head(torch.randn(3, dim, generator=generator), torch.randn(3, generator=generator))
    labels = torch.tensor([0, 1, 2, 1])
    predicted = Predictions(
        labels=labels,
        predicted=labels,
        top5=torch.stack([labels] * 5, 1),
        probability=torch.ones(4),
    )
    result = Result(
        protocol="logreg",
        headline="top1",
        data={
            "name": "pets",
            "classes": CLASSES,
            "train_sha256": "0" * 64,
            "val_sha256": "1" * 64,
            "train_count": 9,
            "val_count": 4,
            "split": "own split",
        },
        checkpoint={
            "path": str(run),
            "run": "run",
            "step": 3,
            "weights_sha256": weights_sha256,
            "receipt": receipt,
        },
        preprocessing=INPUTS | seen,
        metrics=dict.fromkeys(("top1", "top5", "mean_per_class"), Score(81.25, 70.0, 90.0)),
        predictions=predicted,
        ids=torch.arange(4),
        names=["a", "b", "c", "d"],
        seed=0,
        head=head,
    )
    return write_result(run / "eval" / "pets-logreg", result) / "result.json"
