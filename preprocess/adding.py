"""Adds images to a data set: samples that are there keep their ids, new shards follow them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast.data.container.manifest import (
    Manifest,
    find_container,
    manifest_path,
    names_path,
    read_manifest,
    read_shard,
)
from harl_fast.errors import DataError, one_line
from preprocess.assemble import Existing
from preprocess.convert import Settings
from preprocess.reading import parse_range
from preprocess.sources import Source, Split

_STORED = {"kind": "STORE", "max_resolution": "MAX_RESOLUTION", "quality": "QUALITY"}
"""What is to be the same in all of a set, and the variables that say so."""


@dataclass(frozen=True)
class Base:
    """The data set that images are added to."""

    out: Path
    splits: dict[str, Existing]
    relabelled: dict[str, Manifest] = field(default_factory=dict)
    """Manifests of splits without new images whose list of classes grows all the same."""

    @staticmethod
    def of(out: Path) -> Base:
        """Read what is in a folder; raises `DataError` if there is nothing to add to."""
        try:
            train = find_container(out, "train")
        except DataError as error:
            raise DataError(
                f"--add: {error} Without a set to add to, give the images as --data"
            ) from error
        found = {"train": _existing(train)}
        if manifest_path(out / "val.beton").exists():
            found["val"] = _existing(find_container(out, "val"))
        return Base(out, found)

    def settings(self, settings: Settings) -> Settings:
        """Return the settings for new images, which are stored as the others are.

        A range of greys that is left to the images is the one that was found for the others.
        Raises `DataError` for settings that differ from theirs.
        """
        manifest = self.splits["train"].manifest
        store, size = manifest.store, manifest.mask["size"]
        if settings.reading.grey.kind == "auto" and isinstance(store.get("range"), str):
            grey = parse_range(store["range"])
            settings = replace(settings, reading=replace(settings.reading, grey=grey))
        asked = {
            "kind": settings.store.name,
            "max_resolution": settings.max_resolution,
            "quality": settings.quality,
            "range": settings.reading.grey.name,
        }
        wrong = [
            f"{_STORED.get(key, key.upper())}={store[key]}"
            for key, value in asked.items()
            if isinstance(store.get(key), str | int) and store[key] != value
        ]
        wrong += [f"MASK_SIZE={size}"] if size != settings.mask_size else []
        if wrong:
            raise DataError(
                f"{self.out} was made with {' '.join(wrong)}: give the same for the images that "
                f"are added (as options of the program: --help names them)"
            )
        return settings

    def extend(self, source: Source, *, new_classes: bool) -> tuple[Source, Base]:
        """Return what of a source is not there yet, and the set it is added to.

        Labels and classes of the source returned are the set's. Raises `DataError` for images that
        do not belong there: without labels among labelled ones, of other classes without
        ``new_classes``, or with the names of other images.
        """
        classes = self._classes(source, new_classes=new_classes)
        number = {name: label for label, name in enumerate(classes)}
        known = _hashes(name for one in self.splits for name in self._names(one))
        splits = {}
        for name, split in source.splits.items():
            if name not in self.splits:
                raise DataError(
                    f"{self.out} has no {name} images, and {source.name} has "
                    f"{len(split.names):,}: add images of train alone (a folder of them, with "
                    f"VAL=0), or convert everything anew"
                )
            rows = self._new_rows(name, split, source, known)
            if rows:
                fresh = split.take(rows)
                labels = [number[source.classes[label]] for label in fresh.labels if label >= 0]
                splits[name] = replace(
                    fresh, labels=labels or fresh.labels, rejected=split.rejected
                )
        relabelled = {
            name: replace(
                there.manifest,
                classes=classes,
                class_counts=_padded(there.manifest.class_counts, len(classes)),
            )
            for name, there in self.splits.items()
            if name not in splits and there.manifest.classes != classes
        }
        added = replace(source, classes=classes, splits=splits)
        return added, replace(self, relabelled=relabelled if splits else {})

    def _classes(self, source: Source, *, new_classes: bool) -> list[str]:
        """Return the set's classes, those behind them that the source adds."""
        classes = self.splits["train"].manifest.classes
        if bool(classes) != bool(source.classes):
            if classes:
                raise DataError(
                    f"the images of {self.out} have labels, those of {source.name} have none: give "
                    f"them in folders named after its classes"
                )
            raise DataError(
                f"the images of {self.out} have no labels, those of {source.name} have: add them "
                f"with SOURCE=images to leave the labels aside"
            )
        others = [name for name in source.classes if name not in set(classes)]
        if others and not new_classes:
            shown = ", ".join(map(one_line, others[:5])) + (", ..." if len(others) > 5 else "")
            raise DataError(
                f"{source.name} has {len(others)} classes that {self.out} lacks ({shown}): rename "
                f"their folders if they are others of its, or allow them by --new-classes"
            )
        return [*classes, *others]

    def _names(self, split: str) -> Iterator[str]:
        there = self.splits[split]
        folder = self.out / split
        single = not there.manifest.shards
        for file, _ in there.shards:
            path = names_path(self.out / f"{split}.beton" if single else folder / file)
            with open(path, encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines)

    def _new_rows(
        self, name: str, split: Split, source: Source, known: npt.NDArray[np.uint64]
    ) -> list[int]:
        there = np.isin(_hashes(map(one_line, split.names)), known)
        manifest = self.splits[name].manifest
        sources = {event["source"] for event in manifest.history} or {manifest.source}
        if there.any() and source.name not in sources:
            first = one_line(split.names[int(np.argmax(there))])
            raise DataError(
                f"{there.sum():,} {name} images of {source.name} have names that images of "
                f"{self.out} have already ({first}, ...), which came from "
                f"{', '.join(sorted(sources))}: put them into a folder of their own inside each "
                f"class, such as train/CLASS/{source.name}/"
            )
        if there.any():
            print(f"{name}: {there.sum():,} images are there already by their names: passed over")
        return [int(row) for row in np.flatnonzero(~there)]


def _existing(path: Path) -> Existing:
    manifest = read_manifest(path)
    shards = [(shard.file, read_shard(path, shard)) for shard in manifest.shards]
    return Existing(manifest, shards or [(path.name, manifest)])


def _hashes(names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each name: of 10 million names, two meet once in 370,000 sets."""

    def one(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    return np.fromiter(map(one, names), np.uint64)


def _padded(counts: list[int], length: int) -> list[int]:
    return [*counts, *[0] * (length - len(counts))]
