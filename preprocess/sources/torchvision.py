"""torchvision's data sets, downloaded when they are not there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harl_fast.errors import DataError
from preprocess.images.arrays import Pixels
from preprocess.sources.base import Choices, Source, Split
from preprocess.sources.folders import folder_source
from preprocess.sources.heldout import hold_out
from preprocess.sources.layout import LAYOUT

_TRAIN_TEST = ("train", "test")
_THREE, _JOINED = ("train", "val", "test"), ("trainval", "test")


def torchvision_source(name: str, cache: Path, *, root: Path | None = None) -> Source:
    """Return one of `DATASETS`, downloaded by torchvision into ``cache`` when it is not there.

    root: a folder that already holds the files as torchvision lays them out; then nothing is
    downloaded, and other counts than the published ones are a note. Raises `DataError` when the
    download fails or files are missing.
    """
    import torchvision.datasets  # takes seconds, and folders do not need it

    try:
        read = DATASETS[name].read(torchvision.datasets, root or cache, root is None)
        source = replace(read, name=name, provider="torchvision")
    except ModuleNotFoundError as error:
        raise DataError(
            f"torchvision reads {name} with the package {error.name}, which is not installed: "
            f"pip install {error.name}"
        ) from error
    # urllib's errors are OSErrors; ValueError is a set whose address is gone, or a damaged table.
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if root is not None:
            reason = str(error).partition(" You can use download=True")[0]  # not here
            raise DataError(
                f"{root} does not hold {name} as torchvision lays it out ({reason}): give the "
                f"folder that torchvision.datasets takes as its root, or leave --dataset-root out"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the disk, not of the network
        raise DataError(
            f"{name} could not be downloaded into {cache} ({error}). Give the folder of files that "
            f"are already there by --dataset-root (DATASET_ROOT=). Without network, fetch it "
            f"elsewhere, unpack it as an image folder and give `--data FOLDER` "
            f"(make beton DATA=FOLDER); {LAYOUT}"
        ) from error
    counts = tuple(len(source.splits[split].names) for split in ("train", "val"))
    if not DATASETS[name].counts[1]:
        counts = (sum(counts), 0)
    if counts != (expected := DATASETS[name].counts):
        if root is not None:
            note = f"{root} has {counts[0]:,} and {counts[1]:,} images of {name}, published are "
            source.notes.append(f"{note}{expected[0]:,} and {expected[1]:,}")
            return source
        raise DataError(
            f"{name} in {cache} has {counts} images, {expected} are expected: a "
            f"download was cut short. Delete that folder and run the command again"
        )
    return source


# The library is an argument, so that `DATASETS` can be read without importing it. Its data set
# classes are untyped, hence Any.
def _cifar(kind: str) -> Callable[[Any, Path], Source]:
    def read(library: Any, cache: Path, download: bool = True) -> Source:
        train, val = (
            getattr(library, kind)(cache, train=first, download=download) for first in (True, False)
        )
        splits = {
            "train": _in_memory("train", train.data, train.targets),
            "val": _in_memory("val", val.data, val.targets),
        }
        return Source(kind.lower(), list(train.classes), splits)

    return read


def _parts(
    kind: Any, cache: Path, download: bool, splits: Sequence[str] = _TRAIN_TEST, **options: Any
) -> list[Any]:
    """Return some splits of one of the library's kinds of data sets."""
    return [kind(cache, split=split, download=download, **options) for split in splits]


def _imagenette(library: Any, cache: Path, download: bool = True) -> Source:
    library.Imagenette(cache, split="train", size="320px", download=download)
    return replace(folder_source(cache / "imagenette2-320"), name="imagenette")


def _stl10(library: Any, cache: Path, download: bool = True) -> Source:
    train, val = _parts(library.STL10, cache, download)
    return _of_planes("stl10", list(train.classes), train, val)


def _svhn(library: Any, cache: Path, download: bool = True) -> Source:
    train, val = _parts(library.SVHN, cache, download)
    return _of_planes("svhn", [str(digit) for digit in range(10)], train, val)


def _of_planes(name: str, classes: list[str], train: Any, val: Any) -> Source:
    splits = {
        split: _in_memory(split, part.data.transpose(0, 2, 3, 1), part.labels)
        for split, part in (("train", train), ("val", val))
    }
    return Source(name, classes, splits)


def _flowers102(library: Any, cache: Path, download: bool = True) -> Source:
    train, val, test = map(_listed, _parts(library.Flowers102, cache, download, _THREE))
    # Ten training images per class are few; the official validation images join them.
    classes = [f"flower{number + 1:03d}" for number in range(102)]
    return _by_path("flowers102", classes, {"train": train + val, "val": test}, cache)


def _pets(library: Any, cache: Path, download: bool = True) -> Source:
    train, val = _parts(library.OxfordIIITPet, cache, download, _JOINED)
    pairs = {
        split: list(zip(part._images, part._labels, strict=True))
        for split, part in (("train", train), ("val", val))
    }
    return _by_path("pets", list(train.classes), pairs, cache)


def _food101(library: Any, cache: Path, download: bool = True) -> Source:
    train, val = _parts(library.Food101, cache, download)
    pairs = {"train": _listed(train), "val": _listed(val)}
    return _by_path("food101", list(train.classes), pairs, cache)


def _dtd(library: Any, cache: Path, download: bool = True) -> Source:
    train, val, test = _parts(library.DTD, cache, download, _THREE, partition=1)
    # The first of ten partitions; its validation images join the training ones, as is usual.
    pairs = {"train": _listed(train) + _listed(val), "val": _listed(test)}
    return _by_path("dtd", list(train.classes), pairs, cache)


def _cars(library: Any, cache: Path, download: bool = True) -> Source:
    train, val = _parts(library.StanfordCars, cache, download)
    pairs = {"train": train._samples, "val": val._samples}
    return _by_path("cars", [str(name) for name in train.classes], pairs, cache)


def _gtsrb(library: Any, cache: Path, download: bool = True) -> Source:
    train, val = _parts(library.GTSRB, cache, download)
    pairs = {"train": train._samples, "val": val._samples}
    return _by_path("gtsrb", [f"sign{number:02d}" for number in range(43)], pairs, cache)


def _aircraft(library: Any, cache: Path, download: bool = True) -> Source:
    kind = library.FGVCAircraft
    train, val = _parts(kind, cache, download, _JOINED, annotation_level="variant")
    pairs = {"train": _listed(train), "val": _listed(val)}
    # "F/A-18" is a class: names must not read as folders.
    classes = [name.replace("/", "-") for name in train.classes]
    return _by_path("aircraft", classes, pairs, cache)


def _pcam(library: Any, cache: Path, download: bool = True) -> Source:
    splits = {}
    for split, theirs in (("train", "train"), ("val", "test")):
        part = library.PCAM(cache, split=theirs, download=download)
        images, targets = (part._FILES[theirs][what][0] for what in ("images", "targets"))
        with part.h5py.File(cache / "pcam" / images) as file:
            pixels = file["x"][:]
        with part.h5py.File(cache / "pcam" / targets) as file:
            labels = file["y"][:].reshape(-1).tolist()
        splits[split] = _in_memory(split, pixels, labels)
    return Source("pcam", ["normal", "tumour"], splits)


def _sun397(library: Any, cache: Path, download: bool = True) -> Source:
    found = library.SUN397(cache, download=download)
    classes = [name.replace("/", "-") for name in found.classes]
    return _own_split("sun397", classes, sorted(_listed(found)), cache)


def _eurosat(library: Any, cache: Path, download: bool = True) -> Source:
    found = library.EuroSAT(cache, download=download)
    return _own_split("eurosat", list(found.classes), found.samples, cache)


def _caltech101(library: Any, cache: Path, download: bool = True) -> Source:
    found = library.Caltech101(cache, download=download)
    root = Path(found.root) / "101_ObjectCategories"
    rows = [
        (root / found.categories[label] / f"image_{number:04d}.jpg", label)
        for number, label in zip(found.index, found.y, strict=True)
    ]
    return _own_split("caltech101", list(found.categories), rows, cache)


def _listed(part: Any) -> list[tuple[Any, int]]:
    return list(zip(part._image_files, part._labels, strict=True))


def _own_split(name: str, classes: list[str], rows: list[tuple[Any, int]], cache: Path) -> Source:
    """Return a set that comes without test images: `OWN_SPLIT` of each class are held out."""
    whole = _by_path(name, classes, {"train": rows}, cache)
    splits, notes = hold_out(whole.splits["train"], Choices(val=OWN_SPLIT))
    return Source(name, classes, splits, ["this set has no official split", *notes])


def _in_memory(split: str, pixels: Pixels, labels: list[int]) -> Split:
    names = [f"{split}/{index:06d}" for index in range(len(labels))]
    return Split(names, [int(label) for label in labels], pixels=pixels, folder=split)


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
    read: Callable[..., Source]
    """Of torchvision.datasets, the folder of its files, and whether to download."""
    counts: tuple[int, int]
    """Published numbers of training and held-out images; of a set without a split, all and 0."""


OWN_SPLIT = 0.2
"""Share of each class that is held out of a set without test images."""

DATASETS = {
    "cifar10": _Known(_cifar("CIFAR10"), (50_000, 10_000)),
    "cifar100": _Known(_cifar("CIFAR100"), (50_000, 10_000)),
    "svhn": _Known(_svhn, (73_257, 26_032)),
    "food101": _Known(_food101, (75_750, 25_250)),
    "dtd": _Known(_dtd, (3_760, 1_880)),
    "cars": _Known(_cars, (8_144, 8_041)),
    "sun397": _Known(_sun397, (108_754, 0)),
    "gtsrb": _Known(_gtsrb, (26_640, 12_630)),
    "eurosat": _Known(_eurosat, (27_000, 0)),
    "pcam": _Known(_pcam, (262_144, 32_768)),
    "aircraft": _Known(_aircraft, (6_667, 3_333)),
    "caltech101": _Known(_caltech101, (8_677, 0)),
    "imagenette": _Known(_imagenette, (9_469, 3_925)),
    "stl10": _Known(_stl10, (5_000, 8_000)),
    "flowers102": _Known(_flowers102, (2_040, 6_149)),
    "pets": _Known(_pets, (3_680, 3_669)),
}
