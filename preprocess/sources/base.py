"""What every source of images gives: splits of named, mostly labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from preprocess.images.arrays import Pixels
from preprocess.images.members import FileRef, ImageRef, Members

UNLABELLED = -1
"""What containers hold as the label of each image of a set without labels."""


@dataclass(frozen=True)
class Rejected:
    """A source file that became no sample, or a mask that was replaced, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Split:
    """The images of one split, in sample order."""

    names: list[str]
    """Path of each image relative to the source, the sample's name."""
    labels: list[int]
    """Index of each image's class, or `UNLABELLED` for all."""
    root: Path | None = None
    """Folder that the names are relative to; None if the images are no files of their own."""
    folder: str = ""
    """What all names begin with that stands for the split, such as train; empty if they do not."""
    pixels: Pixels | None = None
    """(N, H, W, 3) uint8 instead of files."""
    members: Members | None = None
    """N images inside other files, instead of files of their own."""
    mask_files: Sequence[Path | None] | None = None
    """N mask files that the source itself names; None for an image without one."""
    rejected: list[Rejected] = field(default_factory=list)
    """Files that are no images."""

    def image(self, index: int) -> ImageRef:
        """Return one image: its file, its (H, W, 3) pixels or where its bytes lie."""
        if self.pixels is not None:
            return np.asarray(self.pixels[index], np.uint8)
        return self.file(index)

    def file(self, index: int) -> FileRef:
        """Return one image's file or where its bytes lie; not for pixels in memory."""
        if self.members is not None:
            return self.members[index]
        assert self.root is not None
        return self.root / self.names[index]

    def take(self, rows: Sequence[int]) -> Split:
        """Return some of the images, in the order of ``rows``, without what was rejected."""
        return replace(
            self,
            names=[self.names[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            pixels=None if self.pixels is None else self.pixels[np.asarray(rows)],
            members=None if self.members is None else self.members.take(rows),
            mask_files=None if self.mask_files is None else [self.mask_files[row] for row in rows],
            rejected=[],
        )


@dataclass(frozen=True)
class Source:
    """An image set with a ``train`` split and, where images are held out, a ``val`` split."""

    name: str
    classes: list[str]
    """Empty if the images have no labels: then all are `UNLABELLED`."""
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    """Lines for the user on what was left aside, and on class folders without an image."""
    provider: str = ""
    """Whose the data set and its splits are: "torchvision"; empty for files that were given."""


NO_LABELS = "none"
"""Name of no column: the images are read without labels."""
WITHOUT_COLUMN = f"--label-column {NO_LABELS} reads the images without labels"


@dataclass(frozen=True)
class Choices:
    """What the command line says on how a source is read."""

    source: str | None = None
    """Key of `SOURCES`; None leaves it to the guess."""
    val: float | None = None
    """Share of the training images to hold out where the source has no held-out part, 0 to below 1.
    None: `VAL_SHARE` of images with labels, none of images without."""
    seed: int = 0
    """Chooses which images are held out."""
    image_column: str | None = None
    """Of a Parquet file; None leaves it to the guess."""
    label_column: str | None = None
    """Of a Parquet file; of tar shards a suffix, or a key of their JSON. None leaves it to the
    guess, `NO_LABELS` leaves labels out."""
    skip_broken: bool = False
    """Go on without tar shards, Parquet and Arrow files that are broken."""
    scratch: Path | None = None
    """Folder, to be made and removed by the caller, for what has to be unpacked; None: nothing may
    be."""
    adding: bool = False
    """The images come to those of a set: one class of them is enough."""

    @property
    def least_classes(self) -> int:
        """How many classes images with labels must have."""
        return 1 if self.adding else 2


DEFAULT_CHOICES = Choices()


@dataclass(frozen=True)
class Reader:
    """One kind of source."""

    about: str
    """What it reads, for messages and help: "class folders in train/ and val/ or test/"."""
    fits: Callable[[Path], bool]
    """Whether a path looks like this kind, by names alone."""
    read: Callable[[Path, Choices], Source]
    """Raises `DataError` for what cannot be read."""
