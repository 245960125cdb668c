"""The evaluation of an encoder on a folder of containers: k-NN and a linear head."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harl_fast.data.container.manifest import (
    check_labelled,
    containers_in,
    find_container,
    read_manifest,
)
from harl_fast.data.loader import EvalLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.errors import DataError
from harl_fast.eval.features import FeatureSet, extract
from harl_fast.eval.knn import knn_accuracy
from harl_fast.eval.linear import LinearResult, linear_probe
from harl_fast.eval.metrics import Metrics


@dataclass(frozen=True)
class Evaluation:
    """What one frozen encoder reaches on the validation split."""

    linear: LinearResult
    knn: Metrics
    train_count: int
    """Training samples behind both."""
    feature_dim: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return the same as plain values, for JSON."""
        return asdict(self)


class Evaluator:
    """Both splits of a folder, opened once, to judge any number of encoders alike."""

    def __init__(
        self,
        folder: Path,
        *,
        size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        batch: int = 256,
        workers: int = 0,
    ) -> None:
        """Open both splits' containers; DataError without labels or with other classes.

        size_px: side of the central square that the encoder sees. mean, std: the normalisation it
        was trained with, one value per channel of its images.
        """
        train_set = find_container(Path(folder), "train")
        check_labelled(train_set, read_manifest(train_set))
        if not containers_in(Path(folder), "val"):
            raise DataError(
                f"{folder} has no val.beton to judge features on: nothing was held out. Write both "
                f"with `make beton DATA=<images> VAL=5% OUT={folder}`"
            )
        containers = {"train": train_set, "val": find_container(Path(folder), "val")}
        self._loaders = {
            split: EvalLoader(
                beton, size_px=size_px, batch=batch, workers=workers, channels=len(mean)
            )
            for split, beton in containers.items()
        }
        train, val = (loader.manifest.classes for loader in self._loaders.values())
        if train != val:
            differing = sorted(set(train) ^ set(val)) or ["their order"]
            raise DataError(
                f"{folder}: train.beton has {len(train)} classes and val.beton {len(val)}; they "
                f"differ in {', '.join(differing[:5])}. Give both splits the same class folders "
                f"and run `make beton` again."
            )
        self.classes = len(train)
        self._folder, self._device = folder, device
        self._settings = {"size_px": size_px, "batch": batch, "mean": mean, "std": std}
        self._prepare = Photometric((), mean=mean, std=std, seed=0).to(device).plain

    def __call__(
        self,
        encoder: nn.Module,
        *,
        epochs: int,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        label: str = "",
    ) -> Evaluation:
        """Return the accuracies of one encoder, (B, C, S, S) to (B, D, h, w), on the device.

        epochs: passes of the linear heads over the features. label: name on the progress lines.
        """
        start = time.monotonic()
        encoder = encoder.to(self._device)
        train, val = (
            self._features(encoder, split, autocast=autocast, label=label)
            for split in ("train", "val")
        )
        knn = knn_accuracy(train, val, classes=self.classes, device=self._device)
        linear = linear_probe(
            train, val, classes=self.classes, epochs=epochs, seed=seed, device=self._device
        )
        return Evaluation(
            linear=linear,
            knn=knn,
            train_count=train.labels.shape[0],
            feature_dim=train.features.shape[1],
            seconds=time.monotonic() - start,
        )

    def _features(
        self, encoder: nn.Module, split: str, *, autocast: torch.dtype | None, label: str
    ) -> FeatureSet:
        return extract(
            encoder,
            self._loaders[split],
            prepare=self._prepare,
            device=self._device,
            autocast=autocast,
            label=f"{label} {split} features".strip(),
        )

    def data_facts(self) -> dict[str, str]:
        """Return which containers both splits are."""
        digests = {name: each.manifest.beton_sha256 for name, each in self._loaders.items()}
        return {"folder": str(self._folder.resolve()), **digests}

    def settings(self) -> dict[str, Any]:
        """Return what an evaluation depends on beside data and encoder, and the device's type."""
        return {**self._settings, "device": self._device.type}

    def chance(self) -> float:
        """Return the top-1 in percent of always naming the training split's largest class."""
        train, val = (loader.manifest.class_counts for loader in self._loaders.values())
        return 100.0 * val[train.index(max(train))] / sum(val)


def table(results: Mapping[str, Evaluation], *, chance: float) -> str:
    """Return the results as aligned text, one line per encoder and method, in percent."""
    lines = [f"{'encoder':<12} {'method':<8} {'top-1':>7} {'top-5':>7} {'per class':>10}"]
    for name, result in results.items():
        for method, m in (("linear", result.linear.metrics), ("k-NN", result.knn)):
            lines.append(
                f"{name:<12} {method:<8} {m.top1:7.2f} {m.top5:7.2f} {m.mean_per_class:10.2f}"
            )
    lines.append(f"{'(largest class always)':<21} {chance:7.2f}")
    for name, result in results.items():
        choice = f"{name}: linear head with lr {result.linear.lr}, "
        choice += f"weight decay {result.linear.weight_decay}, chosen on held-out training images"
        edge = " (the grid's edge: a wider grid may do better)" if result.linear.lr_at_edge else ""
        lines.append(choice + edge)
    first = next(iter(results.values()))
    lines.append(
        f"{first.linear.metrics.count:,} validation and {first.train_count:,} training images, "
        f"{first.feature_dim} features"
    )
    return "\n".join(lines)
