"""The image files below a folder, and what else lies there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harl_fast.errors import DataError, one_line
from harl_fast.files import open_regular

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp")
SUFFIXES = frozenset(
    (*_JPEG_SUFFIXES, ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif")
)
TIFF_STARTS = (b"II*\0", b"MM\0*")
_STORAGE = ("@eadir", "#recycle", "@recycle", "#snapshot", "lost+found")
_MACOS = ("__macosx", "icon\r")
_WINDOWS = ("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini")
SYSTEM_NAMES = frozenset((*_STORAGE, *_MACOS, *_WINDOWS))
"""What systems leave among images, thumbnails above all. The rest of their like is hidden:
.DS_Store, .thumbnails, ._x.jpg."""
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", *TIFF_STARTS)
"""First bytes of images, by which files without a suffix are known; WebP's are two pieces."""
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

    Files are images by their suffix, those without one by their content. Raises `DataError` for
    folders that cannot be read, that lie deeper than `DEPTH`, or that are there twice by links:
    their images would be samples twice, mostly of two classes.
    """
    found = Listing()
    for folder, inner, names in _folders(base, found.circles):
        start = f"{folder}/" if folder else ""
        for name in (*inner, *names):
            if _is_aside(name):
                found.passed_over.append(start + name)
        inner[:] = sorted(name for name in inner if not _is_aside(name))
        if not folder:
            found.folders = list(inner)
        for name in names:
            if not _is_aside(name):
                _sort_in(base, start + name, found)
    found.images.sort()
    found.folders.sort()
    return found


def _is_aside(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _sort_in(base: Path, path: str, found: Listing) -> None:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        found.images.append(path)
        return
    reason = f"not an image by its name; allowed: {' '.join(sorted(SUFFIXES))}"
    if os.path.islink(base / path) and not os.path.exists(base / path):
        reason = "a link that leads to nothing that can be read"
        if "/" not in path:
            found.folders.append(path)
    elif not suffix:
        try:
            with open_regular(base / path) as stream:
                head = stream.read(12)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if head.startswith(STARTS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP"):
                found.images.append(path)
                return
    found.strange[path] = reason


def _folders(base: Path, circles: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
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
