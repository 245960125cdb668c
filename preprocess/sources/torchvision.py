"""torchvision's data sets, downloaded when they are not there."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harl_fast.errors import DataError
from preprocess.arrays import Pixels
from preprocess.sources.base import Source, Split
from preprocess.sources.folders import folder_source
from preprocess.sources.layout import LAYOUT


def torchvision_source(name: str, cache: Path) -> Source:
    """Return one of `DATASETS`, downloaded by torchvision into ``cache`` when it is not there.

    Raises `DataError` when the download fails.
    """
    import torchvision.datasets  # takes seconds, and folders do not need it

    try:
        source = DATASETS[name].read(torchvision.datasets, cache)
    except ModuleNotFoundError as error:
        raise DataError(
            f"torchvision reads {name} with the package {error.name}, which is not installed: "
            f"pip install {error.name}"
        ) from error
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the disk, not of the network
        raise DataError(
            f"{name} could not be downloaded into {cache} ({error}). Without network, fetch it "
            f"elsewhere, unpack it as an image folder and give `--data FOLDER` "
            f"(make beton DATA=FOLDER); {LAYOUT}"
        ) from error
    counts = tuple(len(source.splits[split].names) for split in ("train", "val"))
    if counts != DATASETS[name].counts:
        raise DataError(
            f"{name} in {cache} has {counts} images, {DATASETS[name].counts} are expected: a "
            f"download was cut short. Delete that folder and run the command again"
        )
    return source


# The library is an argument, so that `DATASETS` can be read without importing it. Its data set
# classes are untyped, hence Any.
def _cifar(kind: str) -> Callable[[Any, Path], Source]:
    def read(library: Any, cache: Path) -> Source:
        train, val = (
            getattr(library, kind)(cache, train=first, download=True) for first in (True, False)
        )
        splits = {
            "train": _in_memory("train", train.data, train.targets),
            "val": _in_memory("val", val.data, val.targets),
        }
        return Source(kind.lower(), list(train.classes), splits)

    return read


def _stl10(library: Any, cache: Path) -> Source:
    train, val = (library.STL10(cache, split=name, download=True) for name in ("train", "test"))
    splits = {
        split: _in_memory(split, part.data.transpose(0, 2, 3, 1), part.labels)
        for split, part in (("train", train), ("val", val))
    }
    return Source("stl10", list(train.classes), splits)


def _imagenette(library: Any, cache: Path) -> Source:
    library.Imagenette(cache, split="train", size="320px", download=True)
    return folder_source(cache / "imagenette2-320")


def _flowers102(library: Any, cache: Path) -> Source:
    parts = (library.Flowers102(cache, split=s, download=True) for s in ("train", "val", "test"))
    train, val, test = (list(zip(p._image_files, p._labels, strict=True)) for p in parts)
    # Ten training images per class are few; the official validation images join them.
    classes = [f"flower{number + 1:03d}" for number in range(102)]
    return _by_path("flowers102", classes, {"train": train + val, "val": test}, cache)


def _pets(library: Any, cache: Path) -> Source:
    parts = {
        split: library.OxfordIIITPet(cache, split=theirs, download=True)
        for split, theirs in (("train", "trainval"), ("val", "test"))
    }
    pairs = {s: list(zip(p._images, p._labels, strict=True)) for s, p in parts.items()}
    return _by_path("pets", list(parts["train"].classes), pairs, cache)


def _in_memory(split: str, pixels: Pixels, labels: list[int]) -> Split:
    names = [f"{split}/{index:06d}" for index in range(len(labels))]
    return Split(names, [int(label) for label in labels], pixels=pixels)


def _by_path(
    name: str, classes: list[str], pairs: dict[str, list[tuple[Any, int]]], cache: Path
) -> Source:
    splits = {
        split: Split(
            names=[Path(path).relative_to(cache).as_posix() for path, _ in rows],
            labels=[int(label) for _, label in rows],
            root=cache,
        )
        for split, rows in pairs.items()
    }
    return Source(name, classes, splits)


@dataclass(frozen=True)
class _Known:
    read: Callable[[Any, Path], Source]
    counts: tuple[int, int]
    """Published numbers of training and held-out images."""


DATASETS = {
    "cifar10": _Known(_cifar("CIFAR10"), (50_000, 10_000)),
    "cifar100": _Known(_cifar("CIFAR100"), (50_000, 10_000)),
    "imagenette": _Known(_imagenette, (9_469, 3_925)),
    "stl10": _Known(_stl10, (5_000, 8_000)),
    "flowers102": _Known(_flowers102, (2_040, 6_149)),
    "pets": _Known(_pets, (3_680, 3_669)),
}
