"""Archives of an image folder, read without unpacking them."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import lzma
import os
import posixpath
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress, naming, open_regular
from preprocess.images.listing import HEAD_BYTES, Listing, has_image_suffix, is_aside, list_names
from preprocess.images.members import FileRange, Members, ZipMember
from preprocess.sources.base import Choices, Source
from preprocess.sources.entries import BrokenArchiveError, Entry, tar_entries, zip_entries
from preprocess.sources.layout import HELD_OUT, OUTSIDE, arranged
from preprocess.sources.tarshards import is_tree

_PACKED: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_SHORT = {".tgz": ".gz", ".tbz": ".bz2", ".tbz2": ".bz2", ".txz": ".xz"}
"""How compressed tar archives are opened, by suffix; `_SHORT` ones stand for .tar and another."""
_OF_BROKEN_STREAMS = (EOFError, zlib.error, lzma.LZMAError, ValueError)
"""What libraries raise for them, besides an `OSError` without a number."""
_BLOCK = 1 << 20
_PLAIN = ".plain"
"""Suffix of what is unpacked."""
_AGAIN = "get it again, or give it the suffix of its kind"


def is_packed_tar(path: Path) -> bool:
    """Return whether the path is named like a compressed tar archive."""
    *_, inner, outer = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return outer in _SHORT or (outer in _PACKED and inner == ".tar")


def fits_archive(path: Path) -> bool:
    """Return whether the path is an archive: not a plain .tar that holds shards."""
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix == ".zip" or is_packed_tar(path) or (suffix == ".tar" and is_tree(path))


def archive_source(path: Path, choices: Choices) -> Source:
    """Return the images of a zip or tar archive by the rules of folders.

    A folder in which all of its images lie is passed over. A compressed tar archive is unpacked to
    a plain one in `Choices.scratch` first. Raises `DataError` for an archive that is not whole.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give a .zip, .tar or .tar.gz archive")
    held = _plain_tar(path, choices.scratch) if is_packed_tar(path) else path
    is_zip = path.suffix.lower() == ".zip"
    try:
        entries = list(zip_entries(held) if is_zip else tar_entries(held))
    except BrokenArchiveError as error:
        raise DataError(f"{path} is no whole archive ({error}): {_AGAIN}") from error
    kind: Any = ZipMember if is_zip else FileRange
    top = _top(entries)
    found = [
        entry._replace(name=entry.name.removeprefix(top))
        for entry in entries
        if not top.startswith(f"{entry.name.rstrip('/')}/")  # the folders around everything
    ]
    del entries
    places = {entry.name: entry.place for entry in found if entry.place}
    listing = _listing(found, ((name, kind(held, *place)) for name, place in places.items()))
    name = path.name.removesuffix(path.suffix).removesuffix(".tar")
    source = arranged(one_line(name), str(path), listing, choices)
    splits = {
        split: replace(part, members=Members(kind, [(held,)], _numbers(part.names, places)))
        for split, part in source.splits.items()
    }
    notes = list(source.notes)
    times = Counter(entry.name for entry in found if entry.place)
    if again := [name for name, count in times.items() if count > 1]:
        notes.append(
            f"{len(again):,} names stand in it more than once ({one_line(again[0])}): of each the "
            f"last file counts"
        )
    return replace(source, splits=splits, notes=notes)


def _top(entries: Iterable[Entry]) -> str:
    """Return the folder that holds all images, as archives often have, or ""."""
    folders = {
        posixpath.dirname(entry.name)
        for entry in entries
        if entry.place
        and has_image_suffix(entry.name)
        and not any(map(is_aside, entry.name.split("/")))
    }
    top = ""
    for part in posixpath.commonpath(folders).split("/") if folders else ():
        if part.lower() in ("", "train", *HELD_OUT):
            break
        top += f"{part}/"
    return top


def _listing(found: list[Entry], members: Iterable[tuple[str, Any]]) -> Listing:
    folders = {
        entry.name.partition("/")[0]
        for entry in found
        if "/" in entry.name or not (entry.place or entry.reason)
    } - set(OUTSIDE)
    heads = ((name, functools.partial(one.head, HEAD_BYTES)) for name, one in members)
    listing = list_names(heads, folders)
    listing.strange |= {entry.name: entry.reason for entry in found if entry.reason}
    return listing


def _numbers(names: list[str], places: dict[str, tuple[int, ...]]) -> Any:
    return np.array([(0, *places[name]) for name in names], np.int64)


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """Yield a folder in ``out`` for what is unpacked, and remove it, also what a killed run left.

    It is made when it is needed. ``out`` must be locked. Raises `DataError` if it holds what is
    none of ours.
    """
    folder = out / ".unpacked"
    if foreign := [path for path in folder.glob("*") if path.suffix != _PLAIN]:
        raise DataError(
            f"{foreign[0]} lies where archives are unpacked, and is not of this program: move it "
            f"away, or choose another --out"
        )
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain_tar(path: Path, scratch: Path | None) -> Path:
    """Unpack a compressed tar archive's tar into ``scratch``, since bytes in it have no place."""
    if scratch is None:
        raise DataError(f"{path} is compressed, and only `make beton` unpacks it: unpack it first")
    scratch.mkdir(parents=True, exist_ok=True)
    plain = scratch / f"{path.name}{_PLAIN}"
    suffix, size, free = path.suffix.lower(), path.stat().st_size, shutil.disk_usage(scratch).free
    least = f"at least the {size / 1e9:.2f} GB of the archive"
    if size > free:
        raise DataError(
            f"{path} is unpacked to {scratch}, which takes {least}; {free / 1e9:.2f} GB are free "
            f"there: free some, choose another --out, or unpack it elsewhere"
        )
    print(f"unpacking {path} to {scratch}: takes {least}, until the end", flush=True)
    try:
        with (
            open_regular(path) as packed,
            _PACKED[_SHORT.get(suffix, suffix)](packed) as stream,
            open(plain, "wb") as copy,
            Progress(size >> 20, label=f"unpacking {path.name}", unit="MiB") as progress,
        ):
            while block := stream.read(_BLOCK):
                with naming(plain):
                    copy.write(block)
                progress.advance((packed.tell() >> 20) - progress.done)
    except (*_OF_BROKEN_STREAMS, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a library's
            raise
        raise DataError(f"{path} is no whole archive ({error}): {_AGAIN}") from error
    # With the archive's time, an interrupted conversion finds its images unchanged.
    os.utime(plain, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    return plain
