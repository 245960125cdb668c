"""What a worker does with an image: decode, shrink, mask, encode. One decode an image, no state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from ffcv.fields.rgb_image import encode_jpeg

from harl_fast.data.maskfield import pack_mask, resize_mask
from preprocess.images import Decoded, Pixels, UnusableImageError, decode_image, read_mask, shrink
from preprocess.masks import find_mask
from preprocess.masks.binary import Mask
from preprocess.sources import Rejected


@dataclass(frozen=True)
class Settings:
    """How images are stored and masks are made."""

    max_resolution: int
    """Longest stored side in pixels."""
    quality: int
    """JPEG quality, 1 to 100."""
    mask_size: int
    mask_method: str
    """Serves every image without a usable mask file."""


class Task(NamedTuple):
    """One image to convert."""

    name: str
    label: int
    image: Path | Pixels
    mask: Path | None
    """The mask's file, whether it exists or not; None if the method is to make it."""


class Sample(NamedTuple):
    """One converted image, as small as it will be stored."""

    name: str
    label: int
    jpeg: bytes
    height: int
    width: int
    mask: bytes
    """`pack_mask` of the mask."""
    stand_in: bool
    """The method found nothing sound and the centre ellipse serves."""
    mask_problem: str
    """Why the mask file could not serve and the method did; empty if it did or none was given."""


def convert(tasks: list[Task], settings: Settings) -> list[Sample | Rejected]:
    """Return each task's sample, or why there is none."""
    cv2.setNumThreads(1)  # the pool has a process for every core
    results: list[Sample | Rejected] = []
    for task in tasks:
        try:
            results.append(_convert(task, settings))
        except UnusableImageError as error:
            results.append(Rejected(task.name, str(error)))
    return results


def _convert(task: Task, settings: Settings) -> Sample:
    side_px = settings.max_resolution
    if isinstance(task.image, np.ndarray):
        height, width = task.image.shape[:2]
        decoded = Decoded(task.image, 1, (width, height))
    else:
        decoded = decode_image(task.image, side_px=side_px)
    rgb = shrink(decoded.rgb, side_px=side_px)
    mask, stand_in, problem = _mask(task, decoded, rgb, settings.mask_method)
    return Sample(
        name=task.name,
        label=task.label,
        jpeg=encode_jpeg(rgb, settings.quality).tobytes(),
        height=rgb.shape[0],
        width=rgb.shape[1],
        mask=pack_mask(resize_mask(mask, size=settings.mask_size)).tobytes(),
        stand_in=stand_in,
        mask_problem=problem,
    )


def _mask(task: Task, decoded: Decoded, rgb: Pixels, method: str) -> tuple[Mask, bool, str]:
    """Return the mask, whether the stand-in serves, and what was wrong with the mask file."""
    problem = ""
    if task.mask is not None:
        try:
            file = read_mask(
                task.mask, orientation=decoded.orientation, file_size=decoded.file_size
            )
            return file, False, ""
        except UnusableImageError as error:
            problem = str(error)
    mask, stand_in = find_mask(rgb, method)
    return mask, stand_in, problem
