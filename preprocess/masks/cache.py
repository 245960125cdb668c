"""Masks made apart from conversion, kept in a folder that survives interruption.

``CACHE/masks.json`` says how they were made; ``CACHE/<split>/<number>.safetensors`` holds the masks
of 256 consecutive images each. Shards write different numbers: sharing the folder, or copying the
folders of several machines into one, combines them.

Why no tree of PNG files: of 2,500 heuristic masks (ext4, 1,000 per folder), each takes 0.02 ms of
CPU to write and 0.035 ms to read here, but 0.7 to 1.1 ms and 0.3 to 0.6 ms as a 1-bit PNG, over
twenty times as long on the clock, and twice the space. Making a mask takes 3.8 ms: made and read, a
tree costs 1.3 to 1.4 times as much. And its masks have their image's proportions, while methods
make square ones, which would then not come back bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harl_fast.data.order import spread
from harl_fast.errors import DataError, one_line, shown
from harl_fast.files import Progress
from harl_fast.kinds import Text, Whole, of_kind
from harl_fast.lock import holder, locked, write_new
from harl_fast.textfile import read_json
from preprocess.images.members import FileRef
from preprocess.images.reading import DEFAULT_READING, Reading
from preprocess.masks.cachefile import CachedMask, DamagedError, Fingerprint, read_masks
from preprocess.masks.controls import CANVAS_PX
from preprocess.masks.registry import INPUT_PX, SUPERVISION, method_facts
from preprocess.masks.spec import MethodSpec
from preprocess.sources import Split
from preprocess.sources.layout import HELD_OUT

FORMAT = 1
INFO = "masks.json"
FILE_IMAGES = 256
"""Images per file: a few seconds of work, of which an interruption costs the last."""
KEPT_FILES = 64
"""Files held in memory while converting, half a megabyte each."""
NO_FILE = Fingerprint(-1, 0, 0)
"""Fits no file: an image that was listed and could not be opened is tried again."""
SAMPLE = 200
"""A cache or mask tree that fits none of this many images is taken for the wrong one."""


_SHARD_LOCK = re.compile(r"\.shard-([0-9]{1,9})-of-([1-9][0-9]{0,8})\.lock")


def describe(
    spec: MethodSpec, *, max_resolution: int, reading: Reading = DEFAULT_READING
) -> dict[str, Any]:
    """Return what ``masks.json`` holds: equal for equal masks of equal images, on any machine.

    How files were read stands there only if it was not the default, as in caches from before
    there was a choice.
    """
    unusual = {} if reading == DEFAULT_READING else {"reading": reading.facts()}
    return {
        **unusual,
        "format": FORMAT,
        "spec": spec.name if "file" in spec else str(spec),
        "method": method_facts(spec),
        "max_resolution": max_resolution,
        "frame": f"the upright image, shrunk to max_resolution, then to {INPUT_PX} px at most",
        "side": CANVAS_PX,
    }


def key_of(info: dict[str, Any]) -> str:
    """Return 16 digits that every file of a cache carries."""
    text = json.dumps(info, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_cache(folder: Path) -> bool:
    """Return whether a folder is a cache, or else may be a tree of mask files."""
    return (folder / INFO).is_file()


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
    side: Whole
    reading: dict[str, Any] = {}


def read_info(folder: Path) -> dict[str, Any]:
    """Return a cache's description; `DataError` if it has none that this program reads."""
    path = folder / INFO
    if not path.exists():
        raise DataError(
            f"{folder} is no mask cache (it has no {INFO}); make one with "
            f"`python -m preprocess.masks --data FOLDER --out {folder}`"
        )
    again = "Delete it and run `python -m preprocess.masks` again: it keeps what fits"
    try:
        info = read_json(path, error=DataError)
    except DataError as error:
        raise DataError(f"{error}. {again}") from error
    known: _Info = of_kind(info, _Info, where=str(path), remedy=again, error=DataError)
    if (known.format, known.side) != (FORMAT, CANVAS_PX):
        raise DataError(
            f"{path} has format {known.format} with masks of {known.side} px, this program reads "
            f"{FORMAT} with {CANVAS_PX} px; make the cache again with `python -m preprocess.masks`"
        )
    if known.method.supervision not in SUPERVISION:
        raise DataError(
            f"{path}: method.supervision is {shown(known.method.supervision)}, none of "
            f"{', '.join(SUPERVISION)}. {again}"
        )
    return info


@contextlib.contextmanager
def locked_shard(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Hold one shard of a cache, which others may fill with other shards meanwhile.

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


def claim(folder: Path, info: dict[str, Any]) -> None:
    """Write a cache's description, or raise `DataError` if the folder is another one's."""
    if not is_cache(folder):
        ours = (".safetensors", ".tmp", ".lock")
        found = (path for path in folder.rglob("*") if path.is_file() and path.name != INFO)
        if any(path.suffix not in ours for path in found):
            raise DataError(f"{folder} holds other things than a mask cache; choose a new --out")
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


def file_path(folder: Path, split: str, number: int) -> Path:
    """Return where the masks of images 256 * number and on lie."""
    return folder / split / f"{number:06d}.safetensors"


def stale(path: Path, tasks: list[tuple[str, FileRef]], *, key: str) -> str:
    """Return why a file's masks cannot be kept, or an empty text if they can.

    tasks: name and place of the images that it is to hold.
    """
    if not path.is_file():
        return "missing"
    try:
        masks = read_masks(path, key=key)
    except DamagedError as error:
        return f"{path.name} {error}"
    if [mask.name for mask in masks] != [name for name, _ in tasks]:
        return "of another list of images"
    pairs = zip(masks, tasks, strict=True)
    changed = [mask.name for mask, (_, image) in pairs if not mask.image.fits(image)]
    return f"{changed[0]} changed" if changed else ""


def tidy(folder: Path, own: range, *, count: int) -> None:
    """Remove what a killed run was writing of its own files, and files from number ``count`` on."""
    numbers = {f"{number:06d}" for number in own}
    for path in folder.glob(".*.safetensors.*.tmp"):
        if path.name[1:7] in numbers:
            path.unlink(missing_ok=True)
    for path in folder.glob("*.safetensors"):
        if path.stem.isdigit() and int(path.stem) >= count:
            path.unlink(missing_ok=True)


class CacheReader:
    """The masks of one split, by the names of the images."""

    def __init__(self, folder: Path, split: Split, info: dict[str, Any]) -> None:
        self.info = info
        self._key = key_of(info)
        self._places: dict[str, tuple[int, int]] = {}
        wanted = set(split.names)
        # A part that was held out may be another now: those of the other splits come last.
        own = _split_folder(split)
        self.files = sorted(
            folder.glob("*/*.safetensors"), key=lambda path: (path.parent.name != own, path)
        )
        self.damaged: list[str] = []
        self._read = functools.lru_cache(KEPT_FILES)(functools.partial(read_masks, key=self._key))
        with Progress(len(self.files), label=f"reading {folder}", unit="files") as progress:
            for number, path in enumerate(self.files):
                if len(self._places) == len(wanted):
                    break
                try:
                    for place, mask in enumerate(read_masks(path, key=self._key)):
                        if mask.name in wanted:
                            self._places.setdefault(mask.name, (number, place))
                except DamagedError as error:
                    self.damaged.append(f"{path} {error}")
                progress.advance()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def find(self, name: str) -> tuple[CachedMask | None, str]:
        """Return an image's mask, or None and why there is none."""
        if name not in self._places:
            return None, f"{name} has no mask in the cache"
        number, place = self._places[name]
        try:
            return self._read(self.files[number])[place], ""
        except DamagedError as error:
            return None, f"the cache's {self.files[number].name} {error}"


def _split_folder(split: Split) -> str:
    """Return the folder where a split's masks are likeliest; test/ is val's other name."""
    return "val" if split.names[0].partition("/")[0] in HELD_OUT else "train"


def _fits(reader: CacheReader, split: Split, row: int) -> bool:
    mask, _ = reader.find(split.names[row])
    return mask is not None and mask.image.fits(split.file(row))


def open_cache(folder: Path, split: Split) -> CacheReader | None:
    """Return the masks of a split, or None if the cache holds only the training images'.

    Prints what is missing. Raises `DataError` for a cache of other images.
    """
    info = read_info(folder)
    reader = CacheReader(folder, split, info)
    name = _split_folder(split)
    if not len(reader) and name != "train":
        print(one_line(f"{folder} has no mask of the {name} images"))
        return None
    if split.pixels is not None or not len(reader):
        raise DataError(
            f"{folder} holds no mask of the {name} images ({split.names[0]}, ...): it was made "
            f"from other images, or is not whole. Make it with `python -m preprocess.masks`, or "
            f"leave --masks out"
        )
    known = [row for row, n in enumerate(split.names) if n in reader]
    some = [known[place] for place in spread(len(known), SAMPLE)]
    if not any(_fits(reader, split, row) for row in some):
        first = split.names[known[0]]
        raise DataError(
            f"{folder} was made from other images: {first} and all {len(some)} compared have "
            f"another size or content now. Make it again with `python -m preprocess.masks`"
        )
    lacking = len(split.names) - len(known)
    if lacking:
        first = next(n for n in split.names if n not in reader)
        print(one_line(f"{folder} lacks masks of {lacking:,} {name} images ({first}, ...)"))
    for text in reader.damaged:
        print(one_line(f"not used: {text}; `python -m preprocess.masks` makes it again"))
    return reader
