"""The labelled images of a fine-tuning: which are trained on, held out, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harl_fast.data.container.index import read_index
from harl_fast.data.container.manifest import (
    Manifest,
    check_labelled,
    containers_in,
    find_container,
    read_manifest,
)
from harl_fast.data.container.names import read_names
from harl_fast.errors import DataError
from harl_fast.eval.protocol import check_classes
from harl_fast.eval.subsets import choose, hold_out, ids_sha256
from harl_fast.finetuning import FinetuneConfig


@dataclass(frozen=True)
class TuneData:
    """The images of a fine-tuning."""

    val: Path | None
    manifest: Manifest
    train: Path
    ids: Any
    """(N,) int64 array of the samples trained on, ascending; None for all."""
    subset: Any
    """(S,) int64 array of the subset's samples, those held out too; None without one."""
    held_out: Any
    """(M,) int64 array of training samples that choose the head; empty without."""
    names: list[str]
    """Of all training samples, where a subset needs them; else empty."""

    @property
    def train_count(self) -> int:
        """Samples trained on."""
        return self.manifest.count if self.ids is None else len(self.ids)

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint's record says of them."""
        manifest, ids = self.manifest, self.ids
        return {
            "count": manifest.count,
            "beton_sha256": manifest.beton_sha256,
            "classes": list(manifest.classes),
            "train_count": self.train_count,
            "ids_sha256": ids_sha256(ids),
            "subset_sha256": ids_sha256(self.subset),
            "val_sha256": "" if self.val is None else read_manifest(self.val).beton_sha256,
        }


def open_data(
    folder: Path, config: FinetuneConfig, *, subset: str | Path, needs_val: bool
) -> TuneData:
    """Return the images that a configuration asks for. Raises DataError.

    subset: as in `eval.subsets.choose`; empty for all images.
    """
    train = find_container(folder, "train")
    manifest = read_manifest(train)
    check_labelled(train, manifest)
    val = find_container(folder, "val") if containers_in(folder, "val") else None
    check_classes(folder, manifest.classes, (read_manifest(val) if val else manifest).classes)
    if val is None and needs_val:
        raise DataError(
            f"{folder} has no val.beton to judge the network on: nothing was held out. Write both "
            f"with `make beton DATA=<images> VAL=5% OUT={folder}`, or give --mode train"
        )
    ids, drawn, held_out, names = None, None, np.empty(0, np.int64), list[str]()
    if subset or config.hold_out:
        index = read_index(train, manifest, sums=False, skip_broken=config.data.skip_broken)
        names, labels = read_names(train), np.asarray(index.labels, np.int64)
        if len(names) != len(labels):
            raise DataError(
                f"{train}: {len(names):,} names for {len(labels):,} samples, as some shards are "
                f"left out: a subset needs all of them; bring them back or drop --subset"
            )
        ids = np.arange(len(names))
        if subset:
            seed = config.subset_seed
            ids = choose(names, labels, manifest.classes, subset=subset, seed=seed).numpy()
            drawn = ids
        if config.hold_out:
            held_out = _held_out(ids, names, labels, manifest, config)
            ids = np.setdiff1d(ids, held_out)
    return TuneData(val, manifest, train, ids, drawn, held_out, names)


def _held_out(
    ids: Any, names: Sequence[str], labels: Any, manifest: Manifest, config: FinetuneConfig
) -> Any:
    """Return which of the ids choose the head: ``hold_out`` of them, at most a tenth."""
    chosen = hold_out(
        [names[place] for place in ids],
        labels[ids],
        manifest.classes,
        count=min(config.hold_out, len(ids) // 10),
        seed=config.seed,
    )
    if not len(chosen):
        raise DataError(
            f"{len(ids)} training images of {len(manifest.classes)} classes are too few to hold a "
            f"tenth out and leave one of each class: use more"
        )
    return ids[chosen]
