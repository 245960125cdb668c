"""Image folders: train/ and val/ with a sub-folder per class."""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast.errors import DataError, one_line
from preprocess.listing import Listing, list_images
from preprocess.sources.base import Rejected, Source, Split

ONE_FORM = "Give both the composed form, say by `convmv -f utf8 -t utf8 --nfc -r --notest FOLDER`"
LAYOUT = "expected FOLDER/train/<class>/*.jpg and FOLDER/val/<class>/*.jpg (or test/)"


def fits(folder: Path) -> bool:
    """Return whether there is a train/ folder with folders inside."""
    train = folder / "train"
    return train.is_dir() and any(path.is_dir() for path in train.iterdir())


def folder_source(folder: Path) -> Source:
    """Return the images of ``folder``: a class is a sub-folder of train/, at any depth inside.

    Hidden and system files are passed over; other files that are no images are listed as
    rejected. Raises `DataError` for a layout that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; {LAYOUT}")
    train = folder / "train"
    if not train.is_dir():
        raise DataError(f"{folder} has no train/ folder{_nested(folder)}; {LAYOUT}")
    val = _held_out(folder)
    found = {name: _scan(path) for name, path in (("train", train), ("val", val))}
    _check_classes(folder, found["train"], found["val"])
    _check_apart(train, val)
    classes = sorted(found["train"].by_class)
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {}
    notes: list[str] = []
    for split, scan in found.items():
        by_class, base = scan.by_class, scan.folder
        names = [(name, numbers[kind]) for kind in sorted(by_class) for name in by_class[kind]]
        notes += scan.listing.notes(base)
        notes += (f"{scan.without_images(name)}; it is no class here" for name in scan.bare)
        splits[split] = Split(
            names=[f"{base}/{name}" for name, _ in names],
            labels=[label for _, label in names],
            root=folder,
            rejected=[
                Rejected(f"{base}/{name}", reason)
                for name, reason in sorted(scan.listing.strange.items())
            ],
        )
    notes += _links(splits)
    return Source(one_line(folder.resolve().name), classes, splits, notes)


def _links(splits: dict[str, Split]) -> Iterator[str]:
    """Yield lines on files that are more than one image, by hard or symbolic links."""
    files = {name: _identities(split) for name, split in splits.items()}
    for name, found in files.items():
        more = len(found) - len(np.unique(found))
        if more:
            yield f"{more:,} images of {name} are files of other images there, by links"
    both = np.flatnonzero(np.isin(files["val"], files["train"]))
    if both.size:
        twin = int(np.argmax(files["train"] == files["val"][both[0]]))
        first, other = splits["val"].names[both[0]], splits["train"].names[twin]
        yield (
            f"{both.size:,} images of val are files of train by links ({one_line(first)} is "
            f"{one_line(other)}): features will be judged on images they were trained on"
        )


def _identities(split: Split) -> npt.NDArray[np.uint64]:
    """Return a number for each file, the same for links to it; files that are gone have random."""
    assert split.root is not None
    found = np.empty(len(split.names), np.uint64)
    for row, name in enumerate(split.names):
        try:
            facts = os.stat(split.root / name)
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


def _held_out(folder: Path) -> Path:
    for name in ("val", "test"):
        if (folder / name).is_dir():
            return folder / name
    raise DataError(
        f"{folder} has neither a val/ nor a test/ folder{_nested(folder)}; {LAYOUT}. "
        f"Move about a tenth of each class there"
    )


def _nested(folder: Path) -> str:
    """Return a hint when the layout starts a few folders further down."""
    for pattern in ("*/train", "*/*/train", "*/*/*/train"):
        for path in sorted(folder.glob(pattern)):
            if path.is_dir():
                return f", but {path.parent} has: give that one"
    return ""


@dataclass
class _Scan:
    """One split's folder."""

    folder: str
    """train, val or test."""
    listing: Listing
    by_class: dict[str, list[str]]
    """Each class's image paths relative to the folder, sorted."""

    def without_images(self, name: str) -> str:
        """Return what to say of a class folder that has no image."""
        inside = [path for path in self.listing.strange if path.startswith(f"{name}/")]
        what = "it holds no file"
        if name in self.listing.strange:
            what = f"it is {self.listing.strange[name]}"
        elif inside:
            first = inside[0]
            reason = self.listing.strange[first]
            what = f"none of its {len(inside):,} files is one ({one_line(first)}: {reason})"
        return f"{self.folder}/{one_line(name)} has no image: {what}"

    @property
    def bare(self) -> list[str]:
        """Class folders without an image."""
        return [name for name in self.listing.folders if name not in self.by_class]


def _scan(base: Path) -> _Scan:
    listing = list_images(base)
    by_class: dict[str, list[str]] = {}
    loose = 0
    for path in listing.images:
        kind, _, inner = path.partition("/")
        if inner:
            by_class.setdefault(kind, []).append(path)
        else:
            loose += 1
    if loose:
        raise DataError(
            f"{base} holds {loose:,} images outside any class folder; {LAYOUT}. Move them into "
            f"class folders (ImageNet's validation images need that, too)"
        )
    scan = _Scan(base.name, listing, by_class)
    if not by_class:
        found = "; ".join(scan.without_images(name) for name in scan.bare[:3])
        raise DataError(f"{base} holds no image{f' ({found})' if found else ''}; {LAYOUT}")
    return scan


def _check_classes(folder: Path, train: _Scan, held_out: _Scan) -> None:
    names = sorted(train.by_class)
    _check_names(folder, train, held_out)
    if len(names) < 2:
        raise DataError(
            f"{folder}/train has only one class ({names[0]}){_one_level_down(folder, train)}; "
            f"evaluation needs at least two. "
            f"Without labels, split the images into any two folders and ignore the accuracies"
        )
    composed: dict[str, str] = {}
    for name in names:
        twin = composed.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            raise DataError(
                f"{folder}/train has two class folders that both read {name}: {twin!a} and "
                f"{name!a}, two Unicode forms of the same letters. {ONE_FORM}"
            )
    unknown = sorted(held_out.by_class.keys() - train.by_class.keys())
    if not unknown:
        return
    for name in unknown:
        if name in train.bare:
            raise DataError(
                f"{folder}/{held_out.folder} has images of the class {one_line(name)}, but "
                f"{train.without_images(name)}"
            )
        twin = composed.get(unicodedata.normalize("NFC", name), "")
        if twin:
            raise DataError(
                f"{folder}/{held_out.folder} has the class {name!a} and train/ has "
                f"{twin!a}: two Unicode forms of {name}. {ONE_FORM}"
            )
    # Letters of other alphabets can look like the ones in train/.
    texts = [one_line(n) if one_line(n) != n or n.isascii() else f"{n} = {n!a}" for n in unknown]
    shown = ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
    raise DataError(
        f"{folder}/{held_out.folder} has {len(unknown)} class folders that train/ lacks ({shown}); "
        f"give both the same names"
    )


def _check_names(folder: Path, train: _Scan, held_out: _Scan) -> None:
    """Raise `DataError` for class names that cannot be told apart as they are printed."""
    for name in sorted(train.by_class):
        if one_line(name) != name:
            raise DataError(
                f"{folder}/train has a class folder whose name does not print "
                f"({one_line(name)}); rename it, and its like in {held_out.folder}/"
            )
    spaced = [f"'{scan.folder}/{n}'" for scan in (train, held_out) for n in scan.by_class]
    if spaced := [one_line(name) for name in spaced if " '" in name or "/ " in name]:
        raise DataError(
            f"{folder} has class folders whose names begin or end with a space "
            f"({', '.join(spaced[:3])}); rename them"
        )


def _one_level_down(folder: Path, train: _Scan) -> str:
    """Return a hint when the only class folder holds what look like the classes."""
    ((name, paths),) = train.by_class.items()
    inner = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
    if len(inner) < 2:
        return ""
    shown = ", ".join(map(one_line, inner[:3])) + (", ..." if len(inner) > 3 else "")
    return (
        f", and that holds folders itself ({shown}). If those are the classes, they lie one level "
        f"too deep: move them from {folder}/train/{name} up to {folder}/train, and likewise in val"
    )
