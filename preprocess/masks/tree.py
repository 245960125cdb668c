"""Folders of mask files: any tree of them, and those that `make masks` fills, image by image.

``TREE/masks.json`` says how the latter were made; each mask lies under its image's name, and says
inside which image it was made of (`maskfile`). Shards write different files: sharing the folder, or
copying the folders of several machines into one, combines them. A file that the program did not
write, or that was edited since, is a user's own mask: it serves as it is and is never overwritten.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel

from harl_fast.errors import DataError, one_line, shown
from harl_fast.kinds import Text, Whole, of_kind
from harl_fast.lock import InUseError, holder, locked, write_new
from harl_fast.textfile import read_json
from preprocess.images.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.masks.maskfile import read_made
from preprocess.masks.registry import INPUT_PX, SUPERVISION, method_facts
from preprocess.masks.spec import MethodSpec
from preprocess.sources.pages import PAGE

FORMAT = 2
"""1 kept 256 masks per file, in safetensors."""
INFO = "masks.json"

_LONGEST_NAME = 255
"""Bytes of a file's name, on all usual file systems."""
_SHARD_LOCK = re.compile(r"\.shard-([0-9]{1,9})-of-([1-9][0-9]{0,8})\.lock")


def describe(
    spec: MethodSpec, *, max_resolution: int, reading: Reading = DEFAULT_READING
) -> dict[str, Any]:
    """Return what ``masks.json`` holds: equal for equal masks of equal images, on any machine."""
    method = method_facts(spec)
    return {
        "format": FORMAT,
        "spec": spec.name if "sha256" in method else str(spec),  # a path is this machine's
        "method": method,
        "max_resolution": max_resolution,
        "frame": f"the upright image, shrunk to max_resolution, then to {INPUT_PX} px at most",
        "reading": reading.facts(),
    }


def key_of(info: dict[str, Any]) -> str:
    """Return 16 digits that every mask of a tree carries."""
    text = json.dumps(info, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Method(BaseModel):
    method: Text
    parameters: dict[str, Any]
    supervision: Text


class _Info(BaseModel):
    """Kinds of the values of `INFO`, see `describe`."""

    format: Whole
    spec: Text
    method: _Method
    max_resolution: Whole
    frame: Text
    reading: dict[str, Any] = {}


def read_info(folder: Path) -> dict[str, Any]:
    """Return how the masks of a folder were made; `DataError` if this program does not read it."""
    path = folder / INFO
    again = "Delete it and run `python -m preprocess.masks` again: it keeps what fits"
    try:
        info = read_json(path, error=DataError)
    except DataError as error:
        raise DataError(f"{error}. {again}") from error
    known: _Info = of_kind(info, _Info, where=str(path), remedy=again, error=DataError)
    if known.format != FORMAT:
        raise DataError(
            f"{path} has format {known.format}, this program reads {FORMAT}. Delete {folder} and "
            f"make the masks again with `python -m preprocess.masks`"
        )
    if known.method.supervision not in SUPERVISION:
        raise DataError(
            f"{path}: method.supervision is {shown(known.method.supervision)}, none of "
            f"{', '.join(SUPERVISION)}. {again}"
        )
    return info


@contextlib.contextmanager
def locked_shard(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Hold one shard of a tree, which others may fill with other shards meanwhile.

    shard: I, N of the I-th of N. Raises `HarlError` if another process makes some of its files.
    """
    part, parts = shard
    with locked(folder / f".shard-{part}-of-{parts}.lock", output=folder):
        for path in sorted(folder.glob(".shard-*-of-*.lock")):
            other = _SHARD_LOCK.fullmatch(path.name)
            if other is None or path.name == f".shard-{part}-of-{parts}.lock":
                continue
            # Numbers congruent to I-1 modulo N and to J-1 modulo M meet if gcd(N, M) divides I-J.
            meet = (int(other[1]) - part) % math.gcd(int(other[2]), parts) == 0
            owner = holder(path) if meet else None
            if owner is not None:
                raise DataError(
                    f"{folder}: shard {part}/{parts} has files in common with shard "
                    f"{other[1]}/{other[2]}, which {owner} makes now. Give all machines the same "
                    f"N, or wait; if that process is gone for sure, delete {path}"
                )
        yield


def check_whole(folder: Path) -> None:
    """Raise `InUseError` if a process fills a tree just now, so that masks are lacking."""
    for path in sorted(folder.glob(".shard-*-of-*.lock")):
        if (owner := holder(path)) is not None:
            raise InUseError(owner, output=folder, lock=path)


def claim(folder: Path, info: dict[str, Any]) -> None:
    """Write how a tree's masks are made, or raise `DataError` if the folder is another one's."""
    if not (folder / INFO).exists():
        found = (path for path in folder.rglob("*") if path.is_file() and path.name != INFO)
        if other := next((path for path in found if not _is_ours(path)), None):
            raise DataError(
                f"{one_line(str(other))} is no mask of this program; choose a new --out"
            )
        # Of several shards that start at once one writes it; the others compare theirs.
        if write_new(folder / INFO, json.dumps(info, indent=2, ensure_ascii=False) + "\n"):
            return
    there = read_info(folder)
    for name in info:
        if there.get(name) != info[name]:
            raise DataError(
                f"{folder} holds other masks: its {name} is {shown(there.get(name))}, asked for "
                f"is {shown(info[name])}. Choose another --out, or delete the folder to make them "
                f"anew"
            )


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(UnusableImageError):
        return path.suffix in (".tmp", ".lock") or read_made(path) is not None
    return False


@dataclass(frozen=True)
class MaskTree:
    """Where one split's mask files lie."""

    folder: Path
    """Holds ``<class>/<stem>.png``, or what else the images' names are."""
    prefix: str = ""
    """What the images' names begin with and the folder stands for, such as ``train/``."""
    info: dict[str, Any] | None = None
    """How `make masks` made it, see `describe`; None for a tree from elsewhere."""
    contested: frozenset[str] = frozenset()
    """Images whose masks are called by their whole names, see the function `contested`."""

    @functools.cached_property
    def key(self) -> str:
        """`key_of` a tree that `make masks` made; empty for one from elsewhere."""
        return "" if self.info is None else key_of(self.info)

    def path(self, name: str) -> Path:
        """Return the mask file of an image name such as ``train/<class>/<stem>.jpg``.

        The second page of ``<stem>.tif`` has ``<stem>#2.png``.
        """
        if self.info is not None and name not in self.contested:
            whole = self.folder / f"{name}.png"  # from a time when it was contested
            if os.path.isfile(whole):
                return whole
        return self.folder / self.usual(name)

    def usual(self, name: str) -> str:
        """Return where a mask belongs, relative to the folder: if that will do, under the stem."""
        inner = name.removeprefix(self.prefix)
        return f"{inner if name in self.contested else mask_stem(inner)}.png"

    def check(self, names: Sequence[str]) -> None:
        """Raise `DataError` for an image whose mask cannot be written where it belongs."""
        for name in names:
            parts = self.usual(name).split("/")
            too_long = max(map(len, map(os.fsencode, parts))) > _LONGEST_NAME
            if too_long or ".." in parts or not parts[0] or "\0" in name:
                raise DataError(
                    f"{one_line(name)} has no place in {self.folder}"
                    f"{', which takes no names this long' if too_long else ''}: rename it, or let "
                    f"`python -m preprocess.beton` make the masks meanwhile"
                )


def unused(tree: MaskTree, names: Sequence[str]) -> Iterator[str]:
    """Yield a line if a user's own masks in a made tree serve no image, as two have their stems.

    Such a file was the mask of the image that was there first; which one that is cannot be known.
    """
    shared: dict[str, list[str]] = {}
    for name in names:
        if name in tree.contested:
            shared.setdefault(f"{mask_stem(name)}.png", []).append(name)
    there = {file: of for file, of in shared.items() if _is_own(tree.folder / file)}
    serving = {tree.path(name) for name in names} if there else set[Path]()
    left = [
        (tree.folder / file, of)
        for file, of in there.items()
        if tree.folder / file not in serving and not any(_is_own(tree.path(one)) for one in of)
    ]
    if left:
        file, of = left[0]
        yield one_line(
            f"WARNING: {len(left):,} masks of your own serve no image, as their stems are those of "
            f"several by now: if {file} is of {of[0]}, call it {tree.usual(of[0])}"
        )


def _is_own(path: Path) -> bool:
    with contextlib.suppress(UnusableImageError):
        return os.path.lexists(path) and read_made(path) is None
    return False


def mask_stem(name: str) -> str:
    """Return what an image's mask is called without its suffix: ``a/1`` of ``a/1.jpg``.

    The second page of ``a/1.tif`` has ``a/1#2``.
    """
    stem, suffix = posixpath.splitext(name)
    page = PAGE.search(suffix)
    return stem + page[0] if page else stem


def contested(names: Sequence[str]) -> frozenset[str]:
    """Return which images cannot have a mask by their stem alone.

    names: of all images whose masks one folder holds. Another one's stem is the same, or is an
    image's whole name, or a folder is called like the mask.
    """
    there, stems = set(names), [mask_stem(name) for name in names]
    count, folders = Counter(stems), {posixpath.dirname(name) for name in names}
    folders |= {str(above) for folder in folders for above in PurePosixPath(folder).parents}
    return frozenset(
        name
        for name, stem in zip(names, stems, strict=True)
        if count[stem] > 1 or (stem != name and stem in there) or f"{stem}.png" in folders
    )
