"""Tar shards as WebDataset has them: members of one key are a sample."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harl_fast.errors import DataError, few, one_line
from harl_fast.files import Progress, UnusualFileError, open_regular
from harl_fast.textfile import parse_json
from preprocess.images.listing import Listing, has_image_suffix, is_aside, list_files
from preprocess.images.members import FileRange, Members, check_size
from preprocess.sources.base import NO_LABELS, WITHOUT_COLUMN, Choices, Rejected, Source
from preprocess.sources.entries import BrokenArchiveError, tar_entries
from preprocess.sources.samples import (
    check_whole,
    label_text,
    sample_name,
    sample_source,
    split_of,
)

IMAGES = ("jpg", "jpeg", "png", "webp")
"""The usual suffixes of a sample's image; of several the first one here counts."""
LABEL_KEYS = ("label", "cls", "class")
"""Keys of a sample's JSON that may hold its label; the first one there does."""
_LABEL_BYTES = 1 << 20
"""Most bytes of a .cls or .json."""
_LOOKED_AT = 100
"""Members by which shards are told from the archive of a tree."""
_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)")
"""Numbers that a pattern counts through."""
_MOST_SHARDS = 1_000_000
"""Of one pattern, before any is looked for."""
_META = re.compile("__[^/]*__($|/)")
"""WebDataset's names of members that are of no sample."""
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|t[gbx]z2?|tzst)$", re.IGNORECASE)
"""How the name of a compressed shard ends."""


def shards_at(path: Path) -> list[Path]:
    """Return the shards that a path means: a .tar, those at any depth in a folder, or a pattern's.

    A pattern is ``name-{0000..0123}.tar``, of files that need not be there.
    """
    if path.is_dir():
        return sorted(path / name for name in list_files(path, []) if _is_tar(name))
    if path.suffix.lower() != ".tar":
        return []
    if "{" not in str(path) or path.exists():
        return [path]
    _, library = _webdataset()
    try:
        ranges = _RANGE.findall(str(path))
        count = math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)
        if count > _MOST_SHARDS:
            raise DataError(
                f"{path} stands for {count:,} shards, more than {_MOST_SHARDS:,}: check its digits"
            )
        return [Path(name) for name in library.expand_urls(str(path))]
    except (AssertionError, ValueError) as error:
        raise DataError(
            f"{path} is no pattern of shards such as x-{{00..17}}.tar: {error}"
        ) from error


def _is_tar(name: str) -> bool:
    return name[-4:].lower() == ".tar"


def _unread(folder: Path, passed_over: list[str]) -> list[Rejected]:
    """Return the files of a folder that are no shards; `DataError` for compressed ones.

    Hidden and system files are added to ``passed_over``.
    """
    others = sorted(name for name in list_files(folder, passed_over) if not _is_tar(name))
    if packed := [name for name in others if _PACKED.search(name)]:
        names = list(map(one_line, packed))
        raise DataError(
            f"{folder} holds {len(packed):,} compressed shards ({few(names)}), which are not read: "
            f"unpack them, say by gunzip, xz -d or zstd -d, or move them away to go on without them"
        )
    return [Rejected(name, "no .tar") for name in others]


def _webdataset() -> tuple[Any, Any]:
    """Return the modules `tariterators` and `shardlists`."""
    try:
        from webdataset import shardlists, tariterators  # takes seconds
    except ModuleNotFoundError as error:
        raise DataError(
            f"tar shards are read with the package {error.name}, which is not installed: "
            f"pip install {error.name}"
        ) from error
    return tariterators, shardlists


def fits_shards(path: Path) -> bool:
    """Return whether the path means tar files, and not one that holds a tree of folders."""
    if path.is_dir():
        with contextlib.suppress(DataError):  # said by whoever reads it
            return any(map(_is_tar, list_files(path, [])))
        return False
    named = path.suffix.lower() == ".tar"
    return named and ("{" in str(path) if not path.exists() else not is_tree(path))


def is_tree(tar: Path) -> bool:
    """Return whether a tar archive begins with folders of images, and no labels beside them."""
    folders = False
    try:
        for entry in itertools.islice(tar_entries(tar), _LOOKED_AT):
            if entry.place and posixpath.splitext(entry.name)[1].lower() in (".cls", ".json"):
                return False
            folders |= "/" in entry.name and has_image_suffix(entry.name)
    except BrokenArchiveError:
        return False
    return folders


class _Sample(NamedTuple):
    """One image: a `samples.Sample`."""

    name: str
    label: str
    split: str
    shard: Path
    place: tuple[int, int, int]
    """Number of the shard, and offset and size in it."""

    @property
    def where(self) -> str:
        return f"{self.shard.name}: {one_line(self.name)}"


class _Shard(NamedTuple):
    path: Path
    number: int
    split: str
    stream: BinaryIO


@dataclass
class _Found:
    """What the shards hold."""

    samples: list[_Sample] = field(default_factory=list)
    rejected: list[tuple[str, Rejected]] = field(default_factory=list)
    """With the split of each."""
    others: Counter[str] = field(default_factory=Counter)
    """Members that are of no use here, by their suffix."""

    def add(self, other: _Found) -> None:
        """Take what another shard holds."""
        self.samples += other.samples
        self.rejected += other.rejected
        self.others += other.others


def shard_source(path: Path, choices: Choices) -> Source:
    """Return the images of tar shards, with the labels of .cls members or of .json ones.

    Raises `DataError` for shards that are missing or broken, and for labels of some images only.
    """
    passed_over = list[str]()
    shards, unread = shards_at(path), _unread(path, passed_over) if path.is_dir() else []
    if not shards:
        raise DataError(f"{path} holds no .tar; give a folder of shards, or x-{{0000..0123}}.tar")
    base = path if path.is_dir() else path.parent
    found, broken = _Found(rejected=[("", one) for one in unread]), list[Rejected]()
    with Progress(len(shards), label="reading the shards' lists", unit="shards") as progress:
        for number, shard in enumerate(shards):
            try:
                found.add(_read(shard, number, split_of(shard, base), choices))
            except (BrokenArchiveError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                broken.append(Rejected(shard.name, reason or str(error)))
            progress.advance()
    notes = check_whole(path, broken, len(shards), choices)
    notes += Listing(passed_over=passed_over).notes(one_line(path.name))
    found.rejected += [("", one) for one in broken]
    if not found.samples:
        others = ", ".join(one_line(name) for name, _ in found.others.most_common(5))
        raise DataError(
            f"{path} holds no image ({' or '.join(IMAGES)}){f', only {others}' if others else ''}"
            + "".join(f"; {one_line(one.name)}: {one.reason}" for _, one in found.rejected[:1])
        )
    if found.others:
        listed = ", ".join(f"{one_line(n)} {c:,}" for n, c in found.others.most_common(5))
        notes.append(f"passed over {found.others.total():,} members of other kinds: {listed}")
    return sample_source(
        path,
        found.samples,
        functools.partial(Members, FileRange, [(shard,) for shard in shards]),
        choices,
        rejected=found.rejected,
        notes=notes,
    )


def _read(shard: Path, number: int, split: str, choices: Choices) -> _Found:
    """Return what one shard holds; raises `BrokenArchiveError`."""
    library, _ = _webdataset()
    found, files = _Found(), []
    for entry in tar_entries(shard):
        if entry.reason:
            found.rejected.append((split, Rejected(f"{shard.name}/{entry.name}", entry.reason)))
        elif entry.place and not _META.match(entry.name):
            if any(map(is_aside, entry.name.split("/"))):
                found.others["hidden"] += 1
            elif library.base_plus_ext(entry.name)[0] is None:
                found.others["without suffix"] += 1
            else:
                files.append({"fname": entry.name, "data": entry.place, "__url__": str(shard)})
    # Side by side, as the library expects them, whatever the order in the archive.
    files.sort(key=lambda file: library.base_plus_ext(file["fname"])[0])
    try:
        samples = list(library.group_by_keys(files))
    except ValueError as error:
        raise BrokenArchiveError(str(error.args[0])) from error
    with open_regular(shard) as stream:
        for sample in samples:
            _sort_in(sample, _Shard(shard, number, split, stream), choices, found)
    return found


def _sort_in(sample: dict[str, Any], shard: _Shard, choices: Choices, found: _Found) -> None:
    """Add a sample: its key, and where the member of each suffix lies."""
    key = sample.pop("__key__")
    del sample["__url__"]
    usual = [suffix for suffix in IMAGES if suffix in sample]
    images = usual or sorted(
        suffix for suffix in sample if "." not in suffix and has_image_suffix(f".{suffix}")
    )
    if not images:
        listed = ", ".join(f".{suffix}" for suffix in sorted(sample))
        reason = f"no image beside {listed}; a key ends at its first dot"
        found.rejected.append((shard.split, Rejected(sample_name(shard.split, "", key), reason)))
        return
    offset, size = sample.pop(images[0])
    try:
        label = _label(sample, shard.stream, choices.label_column)
    except (DataError, UnusualFileError, ValueError) as error:
        raise DataError(
            f"{shard.path}: the label of {one_line(key)} cannot be read: {error}. {WITHOUT_COLUMN}"
        ) from error
    name = sample_name(shard.split, label, f"{key}.{images[0]}")
    place = (shard.number, offset, size)
    found.samples.append(_Sample(name, label, shard.split, shard.path, place))
    found.others.update(f".{suffix}" for suffix in sample)


def _label(sample: dict[str, Any], shard: BinaryIO, column: str | None) -> str:
    """Take the members that hold a sample's label, and return it, or ""."""
    if column == NO_LABELS:
        return ""
    plain = sample.pop(column or "cls", None)
    if plain:
        return label_text(_text(shard, plain))
    if "json" not in sample:
        return ""
    tree = parse_json(_text(shard, sample.pop("json")), where="its .json", error=DataError)
    keys = [column] if column else [key for key in LABEL_KEYS if key in tree]
    return label_text(tree.get(keys[0])) if keys else ""


def _text(shard: BinaryIO, place: tuple[int, int]) -> str:
    offset, size = place
    check_size(size, _LABEL_BYTES)
    shard.seek(offset)
    return shard.read(size).decode("utf-8-sig")
