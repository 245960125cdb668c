"""The evaluation of an encoder on a folder of containers: k-NN and a linear head."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harl_fast.data.container.manifest import (
    Manifest,
    check_labelled,
    containers_in,
    find_container,
    read_manifest,
)
from harl_fast.data.container.names import read_names
from harl_fast.data.loader import EvalLoader
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.color_device import Photometric
from harl_fast.errors import ConfigError, DataError, shown
from harl_fast.eval.cache import FeatureCache
from harl_fast.eval.features import FeatureSet, extract
from harl_fast.eval.knn import HEADLINE, check_neighbours, knn
from harl_fast.eval.linear import ProbeResult, check_counts, linear_probe
from harl_fast.eval.logistic import logistic_probe
from harl_fast.eval.metrics import Metrics, Predictions, accuracies, scores
from harl_fast.eval.options import BATCH, CROP, METRICS, TEMPERATURE
from harl_fast.eval.ranks import ALONE, Ranks
from harl_fast.eval.subsets import choose, ids_sha256

MEAN_PER_CLASS = ("pets", "flowers102", "aircraft", "caltech101")
"""Data sets whose published results are means over classes; all others' are top-1."""
OFFICIAL = (
    "cifar10", "cifar100", "stl10", "svhn", "food101", "dtd", "cars", "gtsrb", "pcam",
    "imagenette", "pets", "flowers102", "aircraft",
)  # fmt: skip
"""Data sets that come with a split into training and test images."""


_ALL, _SUBSET, _DONE = range(3)
"""Which samples' features rank 0 asks the others for."""


@dataclass(frozen=True)
class Evaluation:
    """What one frozen encoder reaches on the validation split."""

    linear: ProbeResult
    knn: Metrics
    """Of `HEADLINE` neighbours, or of all training samples if those are fewer."""
    train_count: int
    """Training samples behind both."""
    feature_dim: int
    seconds: float
    nearest: Predictions = field(compare=False, repr=False)
    """What `knn` is of."""
    neighbours: dict[int, Predictions] = field(default_factory=dict, compare=False, repr=False)
    """What k-NN predicts, for each k that was asked for."""

    def record(self) -> dict[str, Any]:
        """Return the same as plain values, for JSON."""
        return {
            "linear": self.linear.record(),
            "knn": asdict(self.knn),
            "train_count": self.train_count,
            "feature_dim": self.feature_dim,
            "seconds": self.seconds,
        }


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
        batch: int = BATCH,
        workers: int = 0,
        crop: float = CROP,
        subset: str | Path | None = None,
        subset_seed: int = 0,
        cache: FeatureCache | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Open both splits' containers; DataError without labels or with other classes.

        size_px: side of the central square that the encoder sees, ``crop`` of the shorter side of
        a picture. mean, std: the normalisation it was trained with, one value per channel of its
        images. subset: of the training samples, see `subsets.choose`. cache: where rank 0
        keeps features. ranks: who extract a part of them each, and share the bank of k-NN.
        """
        train_set = find_container(Path(folder), "train")
        check_labelled(train_set, read_manifest(train_set))
        if not containers_in(Path(folder), "val"):
            raise DataError(
                f"{folder} has no val.beton to judge features on: nothing was held out. Write both "
                f"with `make beton DATA=<images> VAL=5% OUT={folder}`"
            )
        self._containers = {"train": train_set, "val": find_container(Path(folder), "val")}
        self.ranks = ranks
        reading: dict[str, Any] = {"size_px": size_px, "batch": batch, "workers": workers}
        reading |= {"centre": crop, "channels": len(mean)}
        self._manifests = {name: read_manifest(each) for name, each in self._containers.items()}
        train, val = (manifest.classes for manifest in self._manifests.values())
        check_classes(folder, train, val)
        self.classes = len(train)
        self._names = {"val": read_names(self._containers["val"])}  # later, others may lie there
        self._loaders = {
            split: _loader(beton, np.arange(self._manifests[split].count), ranks, reading)
            for split, beton in self._containers.items()
        }
        self._train_counts = self._manifests["train"].class_counts
        self.subset: Tensor | None = None
        """Ids of the training samples that are used, ascending; None: all."""
        if subset is not None:
            labels = OpenContainer(train_set).labels
            names = self._names["train"] = read_names(train_set)
            self.subset = choose(names, labels, train, subset=subset, seed=subset_seed)
            self._train_counts = np.bincount(labels[self.subset.numpy()]).tolist()
            self._some = _loader(train_set, self.subset.numpy(), ranks, reading)
        self._folder, self._device, self._cache = folder, device, cache
        self._settings = {"size_px": size_px, "batch": batch, "mean": mean, "std": std}
        self._crop, self._subset = crop, subset
        self._prepare = Photometric((), mean=mean, std=std, seed=0).to(device).plain

    @property
    def train_count(self) -> int:
        """Training samples that are used."""
        return self._manifests["train"].count if self.subset is None else len(self.subset)

    def check(self, neighbours: Sequence[int]) -> None:
        """Raise HarlError for what the training samples are too few for, before any work.

        That is a k of ``neighbours`` above their number, and heads if no class has two of them.
        """
        check_neighbours(neighbours, samples=self.train_count)
        check_counts(self._train_counts, subset=str(self._subset or ""))

    def __call__(
        self,
        encoder: nn.Module,
        *,
        epochs: int,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        label: str = "",
        protocol: str = "cached",
        ks: Sequence[int] = (),
        temperature: float = TEMPERATURE,
        weights_sha256: str | None = None,
    ) -> Evaluation | None:
        """Return the accuracies of one encoder, (B, C, S, S) to (B, D, h, w); None but on rank 0.

        epochs: passes of the linear heads over the features. label: name on the progress lines.
        protocol: "cached" or "logreg". ks, temperature: see `knn.knn`. weights_sha256: which
        encoder it is; without it features are not kept.
        """
        start = time.monotonic()
        encoder = encoder.to(self._device)
        train, val = (
            self.features(encoder, split, autocast=autocast, label=label, weights=weights_sha256)
            for split in ("train", "val")
        )
        headline_k = min(HEADLINE, self.train_count)
        among: dict[str, Any] = {"classes": self.classes, "device": self._device}
        every = [*dict.fromkeys([*ks, headline_k])]
        found = knn(train, val, ks=every, temperature=temperature, ranks=self.ranks, **among)
        if self.ranks.rank:
            return None
        linear: ProbeResult
        if protocol == "logreg":
            linear = logistic_probe(train, val, seed=seed, **among)
        else:
            linear = linear_probe(train, val, epochs=epochs, seed=seed, **among)
        return Evaluation(
            linear=linear,
            knn=accuracies(found[headline_k], classes=self.classes),
            train_count=train.labels.shape[0],
            feature_dim=train.features.shape[1],
            seconds=time.monotonic() - start,
            neighbours={k: found[k] for k in ks},
            nearest=found[headline_k],
        )

    def features(
        self,
        encoder: nn.Module,
        split: str,
        *,
        autocast: torch.dtype | None,
        label: str,
        weights: str | None,
    ) -> FeatureSet:
        """Return an encoder's features of a split, on the device already; see `__call__`.

        All ranks must call it; those but rank 0 return no sample.
        """
        make = functools.partial(
            self._extract, encoder, split, autocast=autocast, label=f"{label} {split}".strip()
        )
        if self.ranks.rank == 0:
            found = self._kept(split, make, autocast=autocast, label=label, weights=weights)
            self.ranks.agree(_DONE)
            return found
        # Rank 0 looks for kept features, and says which samples it needs, if any.
        while (samples := self.ranks.agree(_DONE)[0]) != _DONE:
            make(samples)
        return FeatureSet(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))

    def _kept(
        self,
        split: str,
        make: Callable[[int], FeatureSet],
        *,
        autocast: torch.dtype | None,
        label: str,
        weights: str | None,
    ) -> FeatureSet:
        """Return kept features, else what ``make`` returns of all samples or of the subset."""
        ids = self.subset if split == "train" else None
        wanted = functools.partial(make, _ALL if ids is None else _SUBSET)
        if self._cache is None or weights is None:
            return wanted()
        facts = {
            "weights": weights,
            "container": self._manifests[split].beton_sha256,
            "precision": str(autocast or torch.float32).removeprefix("torch."),
            "device": self._device.type,
            "crop": self._crop,
            "samples": "all",
            **{name: self._settings[name] for name in ("size_px", "mean", "std")},
        }
        name = f"{label} {split}".strip().replace(" ", "-")
        if ids is not None:
            if self._cache.path(facts, name=name).exists():
                found = self._cache.get(facts, lambda: make(_ALL), name=name)
                return FeatureSet(found.features[ids], found.labels[ids])
            facts["samples"] = self._subset_sha256()
        return self._cache.get(facts, wanted, name=name)

    def _extract(
        self,
        encoder: nn.Module,
        split: str,
        samples: int,
        *,
        autocast: torch.dtype | None,
        label: str,
    ) -> FeatureSet:
        """Return the features of all samples of a split or of the subset, on rank 0."""
        ranks, total = self.ranks, self._manifests[split].count
        loader = self._loaders[split]
        if samples == _SUBSET:
            loader, total = self._some, self.train_count
        if ranks.rank == 0:
            ranks.agree(samples)
        own = extract(
            encoder,
            loader,
            prepare=self._prepare,
            device=self._device,
            autocast=autocast,
            label=f"{label} features",
            stream=io.StringIO() if ranks.rank else None,
        )
        return FeatureSet(
            ranks.gather(own.features, total=total), ranks.gather(own.labels, total=total)
        )

    def digests(self) -> dict[str, str]:
        """Return what ranks must have alike, see `engine.meeting.check_alike`."""
        train, val = (each.beton_sha256 for each in self._manifests.values())
        return {"training sets": train, "validation sets": val, "subsets": self._subset_sha256()}

    def _subset_sha256(self) -> str:
        return ids_sha256(None if self.subset is None else self.subset.numpy())

    def data_facts(self) -> dict[str, str]:
        """Return which containers both splits are."""
        digests = {name: each.beton_sha256 for name, each in self._manifests.items()}
        return {"folder": str(self._folder.resolve()), **digests}

    def data_record(self) -> dict[str, Any]:
        """Return what a result says of its data, see `results.Result`."""
        train, val = self._manifests.values()
        return {
            "name": self._folder.resolve().name,
            "classes": train.classes,
            "train_sha256": train.beton_sha256,
            "val_sha256": val.beton_sha256,
            "train_count": self.train_count,
            "val_count": val.count,
            "split": split_kind(train),
            "subset": None if self._subset is None else str(self._subset),
            "subset_sha256": self._subset_sha256(),
        }

    def headline(self) -> str:
        """Return which metric to quote of this data set."""
        return headline(self._manifests["train"])

    def names(self, split: str) -> list[str]:
        """Return the names of a split's samples by their ids; train's only if a subset is used."""
        return self._names[split]

    def settings(self) -> dict[str, Any]:
        """Return what an evaluation depends on beside data and encoder, and the device's type."""
        return {**self._settings, "device": self._device.type}

    def chance(self) -> float:
        """Return the top-1 in percent of always naming the training split's largest class."""
        train, val = (each.class_counts for each in self._manifests.values())
        return 100.0 * val[train.index(max(train))] / sum(val)


def _loader(
    beton: Path, ids: npt.NDArray[np.int64], ranks: Ranks, reading: Mapping[str, Any]
) -> EvalLoader:
    """Return a loader of this rank's part of some samples."""
    if len(ids) < ranks.count:
        raise ConfigError(
            f"{beton}: {len(ids)} samples for {ranks.count} ranks: start as many ranks at most"
        )
    return EvalLoader(beton, ids=ids[ranks.part(len(ids))], **reading)


def split_kind(train: Manifest) -> str:
    """Return "official" for a data set's published split into training and test images.

    A folder may have the data set's name and any split.
    """
    return "official" if train.provider and train.source in OFFICIAL else "own split"


def headline(train: Manifest) -> str:
    """Return which metric to quote of a data set."""
    return "mean_per_class" if train.source in MEAN_PER_CLASS else "top1"


def check_classes(folder: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """Raise DataError unless both splits have the same two or more classes in the same order."""
    if len(train) < 2:
        raise DataError(
            f"{folder} has one class, {shown(train[0])}: there is nothing to tell apart. Convert "
            f"images of two classes or more"
        )
    if train != val:
        differing = sorted(set(train) ^ set(val)) or ["their order"]
        raise DataError(
            f"{folder}: train has {len(train)} classes and val {len(val)}; they differ in "
            f"{', '.join(map(shown, differing[:5]))}. Give both splits the same class folders "
            f"and run `make beton` again"
        )


def table(results: Mapping[str, Evaluation], *, chance: float, classes: int, seed: int = 0) -> str:
    """Return the results as aligned text, one line per encoder and method, in percent.

    Each has its interval, see `metrics.scores` for classes and seed.
    """
    lines = [" ".join([f"{'encoder':<12} {'method':<8}", *(f"{n:<22}" for n in METRICS.values())])]
    for name, result in results.items():
        for method, said in (("linear", result.linear.predictions), ("k-NN", result.nearest)):
            found = scores(said, classes=classes, seed=seed)
            cells = (f"{found[metric]!s:<22}" for metric in METRICS)
            lines.append(" ".join([f"{name:<12} {method:<8}", *cells]).rstrip())
    lines.append(f"{'(largest class always)':<21} {chance:.2f}")
    for name, result in results.items():
        lines.append(f"{name}: {result.linear.explain()}")
    first = next(iter(results.values()))
    lines.append(
        f"{first.linear.metrics.count:,} validation and {first.train_count:,} training images, "
        f"{first.feature_dim} features"
    )
    return "\n".join(lines)
