"""The image files below a folder, and what else lies there."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harl_fast.errors import DataError, one_line
from harl_fast.files import open_regular

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp")
SUFFIXES = frozenset(
    (*_JPEG_SUFFIXES, ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif")
)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFFs; the last two of such as may be larger than 4 GB."""
_STORAGE = ("@eadir", "#recycle", "@recycle", "#snapshot", "lost+found")
_MACOS = ("__macosx", "icon\r")
_WINDOWS = ("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini")
SYSTEM_NAMES = frozenset((*_STORAGE, *_MACOS, *_WINDOWS))
"""What systems leave among images, thumbnails above all. The rest of their like is hidden:
.DS_Store, .thumbnails, ._x.jpg."""
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", *TIFF_STARTS)
"""First bytes of images, by which files of other names are known; see also `not_an_image`."""
HEAD_BYTES = 18
"""How much of a file `not_an_image` needs."""
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
_RAW = ("3fr", "arw", "cr2", "dcr", "dng", "erf", "iiq", "kdc", "mef", "mos", "nef", "nrw", "pef")
RAW_SUFFIXES = frozenset(f".{suffix}" for suffix in (*_RAW, "sr2", "srw"))
"""Of cameras' raw files that begin as TIFFs do, and whose first page is a thumbnail."""
DEPTH = 32
"""Folders in each other; no set has more, and links can make as many as they like."""


@dataclass
class Listing:
    """What lies below a folder; all paths are relative to it."""

    images: list[str] = field(default_factory=list)
    """Sorted."""
    strange: dict[str, str] = field(default_factory=dict)
    """Other files, and why each is no image."""
    folders: list[str] = field(default_factory=list)
    """Those of the first level, and dead links there, which may have led to some; sorted."""
    passed_over: list[str] = field(default_factory=list)
    """Hidden and system files and folders."""
    circles: list[str] = field(default_factory=list)
    """Links to a folder that they lie in, not followed."""

    def below(self, folder: str) -> Listing:
        """Return what lies below one folder of the first level, relative to it."""
        start = f"{folder}/"

        def inner(paths: Iterable[str]) -> list[str]:
            return [path.removeprefix(start) for path in paths if path.startswith(start)]

        images = inner(self.images)
        strange = {path: self.strange[start + path] for path in inner(self.strange)}
        folders = sorted({path.partition("/")[0] for path in (*images, *strange) if "/" in path})
        return Listing(images, strange, folders, inner(self.passed_over), inner(self.circles))

    def notes(self, name: str) -> Iterator[str]:
        """Yield lines on what was left aside; ``name`` is what to call the folder."""
        if self.passed_over:
            first = one_line(self.passed_over[0])
            yield (
                f"{name}: passed over {len(self.passed_over):,} hidden or system files and folders "
                f"({name}/{first}{', ...' if len(self.passed_over) > 1 else ''})"
            )
        for place in self.circles:
            yield f"{name}: {name}/{one_line(place)} leads back to where it lies: not followed"


def list_images(base: Path) -> Listing:
    """Return what lies below ``base`` at any depth, links followed.

    Files are images by their suffix, all others by their first bytes. Raises `DataError` for
    folders that cannot be read, that lie deeper than `DEPTH`, or that are there twice by links:
    their images would be samples twice, mostly of two classes.
    """
    found = Listing()
    for folder, inner, names in walk(base, found.circles):
        start = f"{folder}/" if folder else ""
        for name in (*inner, *names):
            if is_aside(name):
                found.passed_over.append(start + name)
        inner[:] = sorted(name for name in inner if not is_aside(name))
        if not folder:
            found.folders = list(inner)
        for name in names:
            if is_aside(name):
                continue
            path = start + name
            if has_image_suffix(name) or not _is_dead(base / path):
                _sort_in(path, functools.partial(_head, base, path), found)
                continue
            found.strange[path] = "a link that leads to nothing that can be read"
            if not folder:
                found.folders.append(path)
    found.images.sort()
    found.folders.sort()
    return found


def list_files(base: Path, passed_over: list[str]) -> Iterator[str]:
    """Yield the path below ``base`` of each file there, links followed.

    Hidden and system files and folders are added to ``passed_over`` instead. Raises `DataError`,
    see `list_images`.
    """
    for folder, inner, names in walk(base, []):
        start = f"{folder}/" if folder else ""
        passed_over += [start + name for name in (*inner, *names) if is_aside(name)]
        inner[:] = [name for name in inner if not is_aside(name)]
        yield from (start + name for name in names if not is_aside(name))


def is_aside(name: str) -> bool:
    """Return whether a file or folder of this name is passed over: it is hidden or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def not_an_image(name: str, head: bytes) -> str:
    """Return why a file whose suffix is none of `SUFFIXES` is no image, or "" if it is one.

    head: its first `HEAD_BYTES` bytes.
    """
    if os.path.splitext(name)[1].lower() in RAW_SUFFIXES:
        return "a camera's raw file: save it as JPEG or TIFF"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        return "a HEIF or AVIF image, which is not read: save it as JPEG"
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    if head.startswith(STARTS) or webp or bmp:
        return ""
    return "not an image by its name or first bytes; JPEG, PNG, BMP, WebP, TIFF and GIF are"


def list_names(files: Iterable[tuple[str, Callable[[], bytes]]], folders: Iterable[str]) -> Listing:
    """Return the listing of a tree that lies elsewhere than on disk.

    files: path of each, and what reads its first `HEAD_BYTES`; raises `OSError` if it cannot be
    read. folders: those of the first level.
    """
    found = Listing(folders=sorted(name for name in set(folders) if not is_aside(name)))
    for path, head in files:
        parts = path.split("/")
        aside = next((place for place, part in enumerate(parts) if is_aside(part)), None)
        if aside is not None:
            found.passed_over.append("/".join(parts[: aside + 1]))
            continue
        _sort_in(path, head, found)
    found.images.sort()
    found.passed_over = sorted(set(found.passed_over))
    return found


def has_image_suffix(path: str) -> bool:
    """Return whether a file is taken for an image by its suffix."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _sort_in(path: str, head: Callable[[], bytes], found: Listing) -> None:
    """Add a file to the images or to the others; head: see `list_names`."""
    try:
        reason = "" if has_image_suffix(path) else not_an_image(path, head())
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        found.strange[path] = reason
    else:
        found.images.append(path)


def _is_dead(path: Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _head(base: Path, path: str) -> bytes:
    with open_regular(base / path) as stream:
        return stream.read(HEAD_BYTES)


def walk(base: Path, circles: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder's path below ``base``, its folders, which may be altered, and its files."""

    def fail(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}); check its rights"
        ) from error

    seen: dict[str, str] = {}
    for folder, inner, names in os.walk(base, followlinks=True, onerror=fail):
        within = os.path.relpath(folder, base).replace(os.sep, "/")
        within = "" if within == "." else within
        first = seen.setdefault(os.path.realpath(folder), within)
        if first != within:
            inner.clear()
            if not f"{within}/".startswith(f"{first}/" if first else ""):
                raise DataError(
                    f"{base}/{one_line(first)} and {base}/{one_line(within)} are one folder by a "
                    f"link: its images would count twice. Remove one of the two, or copy the files"
                )
            circles.append(within)
            continue
        if within.count("/") >= DEPTH:
            raise DataError(
                f"{base}/{one_line(within)} lies more than {DEPTH} folders deep: give the folder "
                f"that holds train/ and val/, or remove the link that leads there"
            )
        yield within, inner, names
