"""How a split is cut into shards, and where those wait that are finished before the rest is.

A conversion writes into ``OUT/.<split>-<key>.partial/``. The key stands for the settings and all
else that the bytes of every shard depend on; each finished shard is a folder there whose name adds
a digest of its own images. The same command therefore finds what fits and makes the rest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast import __version__
from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress, to_stderr
from preprocess.convert import ConversionSettings
from preprocess.images.members import ImageRef, Page, file_stamp, place_print
from preprocess.masks.sources import MaskList
from preprocess.places import FRESH, Place
from preprocess.publish import NOTE
from preprocess.sources import Source

MOST_IMAGES = 200_000
MOST_BYTES = 20 * 10**9
"""Default limits of a shard: its images, and their bytes in the source."""
_FORMAT = 1
"""Of the bytes that are written for given images and settings."""
RECIPE = "recipe.json"
"""Says in a work folder what all of its shards depend on."""
_TOOLS = ("ffcv", "numpy", "opencv-python", "pillow")
_FOLDER = re.compile(r"\.([a-z]+)-([0-9a-f]{12})\.partial")

Stamps = npt.NDArray[np.int64]
"""(N, 2): size in bytes and modification time in ns; -1 of what is not there."""


@functools.cache
def tool_versions() -> dict[str, str]:
    """Return the versions of what writes containers."""
    tools = {name: version(name) for name in _TOOLS}
    return {"harl_fast": __version__, "python": platform.python_version(), **tools}


def shard_ranges(sizes: npt.NDArray[np.int64], shard_size: int | None) -> list[range]:
    """Return the images of each shard, in order: as many as ``shard_size`` in all but the last.

    sizes: (N,) bytes of each in its source. Without ``shard_size``, up to `MOST_IMAGES` images or
    `MOST_BYTES`, whichever is less.
    """
    ends, parts, start = np.cumsum(np.maximum(sizes, 0)), list[range](), 0
    while start < len(sizes):
        stop = min(start + (shard_size or MOST_IMAGES), len(sizes))
        if shard_size is None:
            before = int(ends[start - 1]) if start else 0
            fit = int(np.searchsorted(ends, before + MOST_BYTES, side="right"))
            stop = min(stop, max(fit, start + 1))
        parts.append(range(start, stop))
        start = stop
    return parts


@dataclass(frozen=True)
class Inputs:
    """What tells a split's images and mask files from changed ones."""

    images: Stamps
    masks: Stamps

    @staticmethod
    def of(masks: MaskList, split: str) -> Inputs:
        """Look at all files of a split."""
        names, root = masks.split.names, masks.split.root
        count = len(names)
        images, others = (np.full((count, 2), -1, np.int64) for _ in range(2))
        with Progress(count, label=f"looking at {split}", least_s=2.0) as progress:
            for index in range(count):
                # Of files by their names: to make a path takes as long as to look at it.
                images[index] = (
                    stamp_of(masks.split.image(index))
                    if root is None
                    else file_stamp(f"{root}/{names[index]}")
                )
                progress.advance()
                if not masks.has_files:
                    continue
                request = masks.request(index)
                if request is not None and request.file is not None:
                    others[index] = stamp_of(request.file)
        return Inputs(images, others)


def stamp_of(image: ImageRef) -> tuple[int, int]:
    """Return what tells an image from a changed one, see `Stamps`."""
    if isinstance(image, np.ndarray):
        return image.nbytes, zlib.crc32(image.tobytes())
    if isinstance(image, Page):
        return stamp_of(image.file)
    if isinstance(image, Path):
        return file_stamp(image)
    file_bytes, time_ns = _container_stamp(image.path)
    # Another column, or another archive of the same time, has other places.
    return image.size, time_ns if file_bytes < 0 else time_ns ^ place_print(image, file_bytes)


@functools.lru_cache(1 << 16)
def _container_stamp(path: Path) -> tuple[int, int]:
    """Return the stamp of a file that holds many images: not read once for each."""
    return file_stamp(path)


def digest_of(masks: MaskList, inputs: Inputs, rows: range) -> str:
    """Return 16 digits for the images of a shard, with labels and masks as the recipe says."""
    split, found = masks.split, hashlib.sha256(f"{rows.start}".encode())
    for row in rows:
        partner = int(masks.partners[row])
        place = repr(split.members[row]) if split.members is not None else ""
        facts = (
            split.names[row],
            split.labels[row],
            place,
            *inputs.images[row].tolist(),
            split.names[partner] if partner != row else "",
            *(inputs.images[partner].tolist() if partner != row else ()),
            *inputs.masks[row].tolist(),
        )
        found.update(f"{facts!r}\n".encode("utf-8", "backslashreplace"))
    return found.hexdigest()[:16]


def recipe(
    source: Source,
    masks: MaskList,
    settings: ConversionSettings,
    *,
    shard_size: int | None,
    first: int,
) -> dict[str, str]:
    """Return what all shards of a split depend on, by names that mean something to a user.

    first: sample id of the first image; not 0 if images are added to a set.
    """
    return {
        "format": str(_FORMAT),
        "tools": json.dumps(tool_versions()),
        **{each.name: str(getattr(settings, each.name)) for each in fields(settings)},
        "data": f"{source.name} {masks.split.root.resolve() if masks.split.root else ''}",
        "classes": json.dumps(source.classes),
        "masks": json.dumps([str(masks.spec), masks.facts, [str(m) for m in masks.methods]]),
        "shard size": str(shard_size),
        "first": str(first),
    }


def key_of(facts: object) -> str:
    """Return 12 digits for a recipe, or for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def open_work(
    place: Place,
    work: str,
    facts: dict[str, str],
    wanted: Sequence[str],
    *,
    fault: Callable[[str], str],
) -> None:
    """Make a split's work folder ready: remove what a killed run left half-done or does not fit.

    wanted: names of the shards' folders. fault: returns what is wrong with the files of one, or "".
    Prints what stays, and what lies in folders of other recipes, which is never removed: a mistyped
    option must not cost days of work.
    """
    split = _split_of(work)
    for name in place.names():
        match = _FOLDER.fullmatch(name)
        if match and match[1] == split and name != work:
            _tell_other(place, name, facts)
    there = place.names(work)
    kept = [name for name in there if name in wanted and place.exists(f"{work}/{name}")]
    faults = {name: problem for name in kept if (problem := fault(name))}
    for name, problem in faults.items():
        print(one_line(f"note: {place}/{work}/{name} is damaged and made again: {problem}"))
    kept = [name for name in kept if name not in faults]
    stale = [name for name in there if name not in kept and name != RECIPE]
    for name in stale:
        place.remove(f"{work}/{name}")
    if others := sum(name not in wanted and not name.startswith(FRESH) for name in stale):
        print(
            f"{split}: {others:,} finished shards of an interrupted conversion are of images that "
            f"have changed since: made again"
        )
    if kept:
        print(f"{split}: {len(kept):,} of {len(wanted):,} shards are finished already", flush=True)
    place.write(f"{work}/{RECIPE}", facts)


def close_work(place: Place, work: str, wanted: Sequence[str]) -> None:
    """Keep the shards that are finished when a conversion fails, and say so; else remove it all."""
    finished = sum(name in wanted for name in place.names(work))
    if not finished:
        place.remove(work)
    elif not place.exists(NOTE):
        to_stderr(
            f"note: {finished:,} of {len(wanted):,} shards of {_split_of(work)} are finished and "
            f"stay in {place}/{work}: the same command continues"
        )


def _split_of(work: str) -> str:
    return work.partition("-")[0][1:]


def work_folder(split: str, facts: dict[str, str]) -> str:
    """Return the name of the folder for a split's finished shards."""
    return f".{split}-{key_of(facts)}.partial"


def _tell_other(place: Place, name: str, facts: dict[str, str]) -> None:
    try:
        theirs = place.read(f"{name}/{RECIPE}")
    except DataError:
        theirs = {}
    differing = [key for key in facts if theirs.get(key) != facts[key]]
    shown = ", ".join(
        f"{key} {theirs[key]}" if len(str(theirs.get(key, "-" * 99))) < 60 else key
        for key in differing
    )
    print(
        f"note: {place}/{name} is of a conversion that was interrupted and differs in "
        f"{one_line(shown)}: the command of that one continues it; else delete the folder"
    )
