"""Folders of images: class folders with and without splits, and images anywhere below."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast.errors import DataError, one_line
from harl_fast.files import open_regular
from preprocess.images.listing import (
    HEAD_BYTES,
    SUFFIXES,
    is_aside,
    list_images,
    not_an_image,
    walk,
)
from preprocess.sources.base import DEFAULT_CHOICES, Choices, Source
from preprocess.sources.layout import (
    LAYOUT,
    class_source,
    plain_source,
    split_folders,
    with_unread,
)


def fits_folders(folder: Path) -> bool:
    """Return whether there is a train/ with folders inside."""
    train = split_folders(_inner(folder)[0]).train if folder.is_dir() else ""
    return bool(train) and bool(_inner(folder / train)[0])


def fits_classes(folder: Path) -> bool:
    """Return whether all images lie in two or more folders of the first level, none a train/."""
    if not folder.is_dir():
        return False
    kinds, loose = _inner(folder)
    if split_folders(kinds).train or _any_image(folder, loose):
        return False
    with_images = 0
    for kind in kinds:
        inner, files = _inner(folder / kind)
        if any(_holds_image(folder / kind / name) for name in inner):
            return False
        with_images += _any_image(folder / kind, files)
    return with_images > 1


def fits_images(folder: Path) -> bool:
    """Return whether images lie below in no layout that would give them labels."""
    if not folder.is_dir() or fits_folders(folder) or fits_classes(folder):
        return False
    return not nested(folder) and _holds_image(folder)


def _inner(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of a folder's folders and files, without what is passed over."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_aside(entry.name):
                    # A link that leads to itself is an error to `is_dir`, and a file to `isdir`.
                    link = entry.is_symlink()
                    is_folder = os.path.isdir(entry.path) if link else entry.is_dir()
                    (folders if is_folder else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); check its rights") from error
    return folders, files


def _any_image(folder: Path, names: list[str]) -> bool:
    """Return whether a folder's files of these names have an image among them."""
    if any(os.path.splitext(name)[1].lower() in SUFFIXES for name in names):
        return True
    for name in names:
        with contextlib.suppress(OSError), open_regular(folder / name) as stream:
            if not not_an_image(name, stream.read(HEAD_BYTES)):
                return True
    return False


def _holds_image(folder: Path) -> bool:
    """Return whether an image lies anywhere below; stops at the first."""
    for place, inner, names in walk(folder, []):
        inner[:] = [name for name in inner if not is_aside(name)]
        if _any_image(folder / place, [name for name in names if not is_aside(name)]):
            return True
    return False


def folder_source(folder: Path, choices: Choices = DEFAULT_CHOICES) -> Source:
    """Return the images of ``folder``: a class is a sub-folder of train/, at any depth inside.

    Hidden and system files are passed over; other files that are no images are listed as
    rejected. Raises `DataError` for a layout that cannot be used.
    """
    _check_folder(folder)
    inside, loose = _inner(folder)
    tops = split_folders(inside)
    if not tops.train:
        hint = f", but {inner} has: give that one" if (inner := nested(folder)) else ""
        raise DataError(f"{folder} has no train/ folder{hint}; {LAYOUT}")
    parts = {"train": (tops.train, list_images(folder / tops.train))}
    if tops.held_out:
        parts["val"] = (tops.held_out, list_images(folder / tops.held_out))
        _check_apart(folder / tops.train, folder / tops.held_out)
    source = class_source(_name(folder), str(folder), parts, choices)
    return _rooted(folder, with_unread(source, tops, sorted(loose)))


def class_folders(folder: Path, choices: Choices) -> Source:
    """Return the images of ``folder``, whose sub-folders are the classes."""
    _check_folder(folder)
    listing = list_images(folder)
    return _rooted(
        folder, class_source(_name(folder), str(folder), {"train": ("", listing)}, choices)
    )


def plain_folder(folder: Path, choices: Choices) -> Source:
    """Return all images below ``folder``, without labels."""
    _check_folder(folder)
    return _rooted(folder, plain_source(_name(folder), str(folder), list_images(folder), choices))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; {LAYOUT}")


def _name(folder: Path) -> str:
    return one_line(folder.resolve().name)


def _rooted(folder: Path, source: Source) -> Source:
    """Return a source whose names are paths below ``folder``, with what links make of them."""
    splits = {name: replace(split, root=folder) for name, split in source.splits.items()}
    source = replace(source, splits=splits)
    return replace(source, notes=[*source.notes, *link_notes(source)])


def link_notes(source: Source) -> Iterator[str]:
    """Yield lines on files that are more than one image, by hard or symbolic links."""
    splits = source.splits
    files = {
        name: _identities([os.path.join(split.root or "", image) for image in split.names])
        for name, split in splits.items()
    }
    for name, found in files.items():
        more = len(found) - len(np.unique(found))
        if more:
            yield f"{more:,} images of {name} are files of other images there, by links"
    if "val" not in files:
        return
    both = np.flatnonzero(np.isin(files["val"], files["train"]))
    if both.size:
        twin = int(np.argmax(files["train"] == files["val"][both[0]]))
        first, other = splits["val"].names[both[0]], splits["train"].names[twin]
        yield (
            f"{both.size:,} images of val are files of train by links ({one_line(first)} is "
            f"{one_line(other)}): features will be judged on images they were trained on"
        )


def _identities(paths: list[str]) -> npt.NDArray[np.uint64]:
    """Return a number for each file, the same for links to it; files that are gone have random."""
    found = np.empty(len(paths), np.uint64)
    for row, path in enumerate(paths):
        try:
            facts = os.stat(path)
            found[row] = (facts.st_dev << 48 ^ facts.st_ino) % 2**64
        except OSError:  # said when it is read
            found[row] = secrets.randbits(64)
    return found


def _check_apart(train: Path, val: Path) -> None:
    """Raise `DataError` if a folder of one split is a folder of the other by a link."""
    known = {os.path.realpath(path): path for path in (train, *train.iterdir())}
    for path in (val, *sorted(val.iterdir())):
        if path.is_dir() and (other := known.get(os.path.realpath(path))):
            raise DataError(
                f"{other} and {path} are one folder by a link: features would be judged on the "
                f"images they were trained on. Give val/ images of its own"
            )


def nested(folder: Path) -> Path | None:
    """Return the folder below that has train/ and val/ (or its like), if there is one."""
    for pattern in ("*/[tT]*", "*/*/[tT]*", "*/*/*/[tT]*"):
        for path in sorted(folder.glob(pattern)):
            inner = path.parent
            if path.name.lower() != "train" or not fits_folders(inner):
                continue
            if split_folders(_inner(inner)[0]).held_out:
                return inner
    return None
