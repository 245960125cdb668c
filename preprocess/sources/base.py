"""What every source of images gives: splits of named, mostly labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocess.arrays import Pixels


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
    root: Path | None = None
    """Folder that the names are relative to; None if the pixels are in memory."""
    pixels: Pixels | None = None
    """(N, H, W, 3) uint8 instead of files."""
    rejected: list[Rejected] = field(default_factory=list)
    """Files that are no images by their name."""

    def image(self, index: int) -> Path | Pixels:
        """Return one image's file or its (H, W, 3) pixels."""
        if self.pixels is not None:
            return np.asarray(self.pixels[index], np.uint8)
        assert self.root is not None
        return self.root / self.names[index]


@dataclass(frozen=True)
class Source:
    """A labelled image set with a ``train`` and a ``val`` split."""

    name: str
    classes: list[str]
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    """Lines for the user on what was left aside, and on class folders without an image."""
