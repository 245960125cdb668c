"""Pictures with true masks for the mask benchmark, and photos without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks import composites
from harl_fast.data.order import spread
from harl_fast.errors import DataError
from preprocess.images.arrays import Mask, Pixels

HALVES = ("tune", "held out")
"""Even and odd positions of the sorted names: constants may be chosen on the first only."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Case:
    """A picture (H, W, 3) uint8 RGB and its true mask (H, W) bool."""

    name: str
    image: Pixels
    truth: Mask


def half(position: int) -> str:
    """Return the half of the fixed split that a position among sorted names belongs to."""
    return HALVES[position % 2]


def horses(folder: Path) -> list[Case]:
    """Return the pairs of ``folder``/images and ``folder``/masks, by name.

    A true pixel is above 127; each photo is resized to its mask. Raises DataError when the
    folders are not there or a photo has no mask.
    """
    photos = _files(folder / "images")
    masks = {path.stem: path for path in _files(folder / "masks")}
    if missing := [path.name for path in photos if path.stem not in masks]:
        raise DataError(f"{folder}/masks has no mask for {missing[0]} ({len(missing)} in all)")
    return [Case(p.stem, *_pair(p, masks[p.stem])) for p in sorted(photos, key=lambda p: p.name)]


def drawn(count: int, *, seed: int = 0) -> list[Case]:
    """Return generated pictures with exact masks."""
    found = enumerate(composites.composites(count, seed=seed))
    return [Case(f"drawn {index:03d}", each.image, each.mask) for index, each in found]


def cut_outs(count: int, stamps: Path, photos: Sequence[Path], *, seed: int = 0) -> list[Case]:
    """Return real cut-outs before real photos; `composites.stamped` keeps the halves apart."""
    loaded = composites.load_stamps(stamps)
    made = (composites.stamped(i, loaded, photos, seed=seed) for i in range(count))
    return [Case(f"cut-out {i:03d}", each.image, each.mask) for i, each in enumerate(made)]


def photo_files(folder: Path, *, most: int) -> list[Path]:
    """Return up to ``most`` photos of ``folder``/train or ``folder``, evenly spaced by name."""
    inside = folder / "train" if (folder / "train").is_dir() else folder
    files = _files(inside)
    return [files[place] for place in spread(len(files), most)]


def pictures(files: Sequence[Path], *, longest_px: int | None = None) -> Iterator[Pixels]:
    """Yield decoded RGB pictures; with ``longest_px`` the longest side has that many pixels."""
    for file in files:
        with Image.open(file) as image:
            rgb = np.asarray(image.convert("RGB"))
        if longest_px is not None:
            scale = longest_px / max(rgb.shape[:2])
            rgb = resized(rgb, round(rgb.shape[0] * scale), round(rgb.shape[1] * scale))
        yield rgb


def resized(rgb: Pixels, height: int, width: int) -> Pixels:
    """Return pixels at another size: by area where they shrink, linear where they grow."""
    how = cv2.INTER_AREA if width <= rgb.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=how), np.uint8)


def _pair(photo: Path, mask: Path) -> tuple[Pixels, Mask]:
    with Image.open(mask) as image:
        truth = np.asarray(image.convert("L")) > 127
    with Image.open(photo) as image:
        rgb = np.asarray(image.convert("RGB"))
    return resized(rgb, *truth.shape), truth


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: it should hold images")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return sorted(files)
