"""Adds images to a data set: samples that are there keep their ids, new shards follow them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harl_fast.data.container.manifest import (
    REMEDY,
    Manifest,
    find_container,
    manifest_path,
    names_path,
    read_manifest,
    read_shard,
)
from harl_fast.errors import DataError, few, one_line, shown
from harl_fast.files import Progress, sha256_file
from preprocess.assemble import Existing
from preprocess.convert import ConversionSettings
from preprocess.images.prints import NONE
from preprocess.images.reading import GreyRange, parse_range
from preprocess.masks.registry import SUPERVISION
from preprocess.places import LocalPlace
from preprocess.prints import fingerprint, read_prints
from preprocess.shards import read_report
from preprocess.sources import Source, Split
from preprocess.sources.base import WITHOUT_COLUMN
from preprocess.sources.layout import ONE_FORM, two_forms
from preprocess.sources.pages import PAGE

_DEFAULTS = {"channels": 3, "pages": "first", "keep_warned": False}
"""What manifests leave out of `Reading.facts`."""
_SWITCHES = {
    "icc": ("ARGS=--no-icc", "ARGS=--icc"),
    "keep_warned": ("no --keep-warned", "ARGS=--keep-warned"),
}
"""How one asks for what is to be the same in all of a set, where no variable does."""


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
        for split in found:
            read_report(LocalPlace(out), f"{split}.report.json")  # will be part of the new one
        return Base(out, found)

    def settings(self, settings: ConversionSettings) -> ConversionSettings:
        """Return the settings for new images, which are stored as the others are.

        A range or number of channels that is left to the images is what was found for the others.
        Raises `DataError` for settings that differ from theirs.
        """
        manifest = self.splits["train"].manifest
        store, size = manifest.store, manifest.mask["size"]
        if settings.reading.grey.kind == "auto" and isinstance(store.get("range"), str):
            grey = _range(self.out, store["range"])
            settings = replace(settings, reading=replace(settings.reading, grey=grey))
        store = {**_DEFAULTS, **store, "store": store.get("kind", "jpg")}
        if settings.reading.channels == 0 and isinstance(store["channels"], int):
            reading = replace(settings.reading, channels=store["channels"])
            settings = replace(settings, reading=reading)
        asked = {
            **_DEFAULTS,
            **settings.reading.facts(),
            "store": settings.store.name,
            "max_resolution": settings.max_resolution,
            "quality": settings.quality,
        }
        asked.pop("range_found", None)
        wrong = [
            _option(key, store[key])
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
        """Return those images of a source that the set lacks, and the set that they are added to.

        Labels and classes of the source returned are the set's. Raises `DataError` for images that
        do not belong there: without labels among labelled ones, of other classes without
        ``new_classes``, or with the names of other images: of two files with a name, other
        fingerprints tell, and where none was recorded, sources of other names.
        """
        classes = self._classes(source, new_classes=new_classes)
        number = {name: label for label, name in enumerate(classes)}
        known = _Known.of(self)
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
                    f"them some, such as by folders named after its classes"
                )
            raise DataError(
                f"the images of {self.out} have no labels, those of {source.name} have: add them "
                f"with SOURCE=images to leave the labels aside; of shards and tables, "
                f"{WITHOUT_COLUMN}"
            )
        others = [name for name in source.classes if name not in set(classes)]
        if others and not new_classes:
            raise DataError(
                f"{source.name} has {len(others)} classes that {self.out} lacks "
                f"({few([*map(one_line, others)])}): rename their folders if they are others of "
                f"its, or allow them by --new-classes"
            )
        if twins := two_forms([*classes, *others]):
            raise DataError(
                f"{self.out} has the class {twins[0]!a} and {source.name} has {twins[1]!a}: two "
                f"Unicode forms of {twins[0]}. {ONE_FORM}"
            )
        return [*classes, *others]

    def containers(self) -> Iterator[tuple[Path, Manifest]]:
        """Yield each container's path and manifest."""
        for split, there in self.splits.items():
            folder = self.out / split if there.manifest.shards else self.out
            yield from ((folder / file, manifest) for file, manifest in there.shards)

    def _new_rows(self, name: str, split: Split, source: Source, known: _Known) -> list[int]:
        hashes = _hashes(map(one_line, split.names))
        there, prints = known.find(hashes)
        others = _changed(split, np.flatnonzero(there & (prints != NONE)), prints)
        if known.files is not None:
            there_now, of_file = known.files.find(_hashes(map(_file_name, split.names)))
            others += _changed(
                split, np.flatnonzero(there_now & ~there & (of_file != NONE)), of_file
            )
        _refuse(self.out, name, split, source, others, "and other contents")
        named = np.flatnonzero(there & (prints == NONE))
        manifest = self.splits[name].manifest
        sources = {event["source"] for event in manifest.history} or {manifest.source}
        if source.name not in sources:
            came = f"which came from {', '.join(sorted(sources))}"
            _refuse(self.out, name, split, source, named.tolist(), came)
        if there.any():
            print(f"{name}: {there.sum():,} images are there already: passed over")
        if named.size:
            print(
                f"WARNING: {named.size:,} of these are taken for known ones BY THEIR NAMES ALONE "
                f"({one_line(split.names[named[0]])}, ...), since what {self.out} was made of was "
                f"not recorded then: images of another folder named {source.name} would be lost"
            )
        fresh = np.flatnonzero(~there)
        own = np.fromiter((each for _, each in _prints(split, fresh)), np.uint64)
        twins = fresh[np.isin(own, known.prints) & (own != NONE)]
        if twins.size:
            print(
                f"WARNING: {twins.size:,} of {fresh.size:,} images that are added to {name} are "
                f"there already under other names ({one_line(split.names[twins[0]])}, ...), as "
                f"when folders were renamed: each will be two samples. Interrupt this, and convert "
                f"everything anew as it lies now, to have them once"
            )
        return [int(row) for row in fresh]


@dataclass(frozen=True)
class _Known:
    """The images of a set."""

    names: npt.NDArray[np.uint64]
    """(N,): hashes of their names, ascending."""
    prints: npt.NDArray[np.uint64]
    """(N,): their fingerprints."""
    files: _Known | None = None
    """The same by the names of their files, in a set whose images are the pages of TIFFs: a page's
    name changes with the number of pages."""

    @staticmethod
    def of(base: Base) -> _Known:
        paged = base.splits["train"].manifest.store.get("pages") == "all"
        files = _Known._by(base, _file_name) if paged else None
        return replace(_Known._by(base, str), files=files)

    @staticmethod
    def _by(base: Base, key: Callable[[str], str]) -> _Known:
        parts = [
            (_names(beton, each, key), read_prints(beton, each))
            for beton, each in base.containers()
        ]
        names, first = np.unique(np.concatenate([name for name, _ in parts]), return_index=True)
        return _Known(names, np.concatenate([prints for _, prints in parts])[first])

    def find(
        self, names: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
        """Return (n,) whether each name is there, and the fingerprints under these names."""
        rows = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        return self.names[rows] == names, self.prints[rows]


def _file_name(name: str) -> str:
    """Return what an image's name says of its file, without the number of a page."""
    return PAGE.sub("", one_line(name))


def _names(beton: Path, manifest: Manifest, key: Callable[[str], str]) -> npt.NDArray[np.uint64]:
    whole = beton.is_file() and beton.stat().st_size == manifest.beton_bytes
    path = names_path(beton) if whole else beton
    if not whole or not path.is_file() or sha256_file(path) != manifest.names_sha256:
        raise DataError(
            f"{path} is missing, was cut short or belongs to another container: nothing can be "
            f"added to it. Copy the files of the set together again"
        )
    with open(names_path(beton), encoding="utf-8") as lines:
        return _hashes(key(line.rstrip("\n")) for line in lines)


def _changed(split: Split, rows: npt.NDArray[np.intp], prints: npt.NDArray[np.uint64]) -> list[int]:
    """Return which of some images have other fingerprints than those given for all."""
    return [row for row, own in _prints(split, rows) if own not in (NONE, int(prints[row]))]


def _prints(split: Split, rows: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield some rows, each with its image's fingerprint."""
    with Progress(len(rows), label="comparing with images there", least_s=2.0) as progress:
        for row in rows.tolist():
            yield row, fingerprint(split.image(row))
            progress.advance()


def _refuse(
    out: Path, name: str, split: Split, source: Source, rows: Sequence[int], why: str
) -> None:
    """Raise `DataError` if there are images that have the names of others."""
    if rows:
        raise DataError(
            f"{len(rows):,} {name} images of {source.name} have names that images of {out} have "
            f"already ({one_line(split.names[rows[0]])}, ...), {why}: convert everything anew if "
            f"these are the same images, edited since; put others into a folder of their own "
            f"inside each class, such as train/CLASS/{source.name}/ (in shards and tables give "
            f"each key or path such a folder)"
        )


def _option(key: str, value: Any) -> str:
    return _SWITCHES[key][value] if key in _SWITCHES else f"{key.upper()}={value}"


def _range(out: Path, text: str) -> GreyRange:
    try:
        return parse_range(text)
    except ValueError as error:
        raise DataError(f"{out}: its manifest has a range that cannot be: {error}") from error


def _existing(path: Path) -> Existing:
    """Return what is there of a split, with a manifest that a set's can be merged from."""
    manifest = read_manifest(path)
    shards = [(shard.file, read_shard(path, shard)) for shard in manifest.shards]
    folder = path if shards else path.parent
    shards = shards or [(path.name, manifest)]
    for file, each in shards:
        found = each.mask.get("supervision")
        if found not in SUPERVISION:
            raise DataError(
                f"{manifest_path(folder / file)}: mask.supervision is {shown(found)}, none of "
                f"{', '.join(SUPERVISION)}. {REMEDY}"
            )
    return Existing(manifest, shards)


def _hashes(names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each name: of 10 million names, two meet once in 370,000 sets."""

    def one(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    return np.fromiter(map(one, names), np.uint64)


def _padded(counts: list[int], length: int) -> list[int]:
    return [*counts, *[0] * (length - len(counts))]
