"""What a worker does with an image: decode, shrink, mask, encode. One decode an image, no state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from harl_fast.data.imagefield import MODE_JPG
from harl_fast.data.maskfield import pack_mask, resize_mask
from preprocess.encode import DEFAULT_STORE, Store, encode
from preprocess.images import Decoded, Pixels, UnusableImageError, decode_image, read_mask, shrink
from preprocess.masks import find_mask
from preprocess.masks.binary import Mask
from preprocess.passthrough import NotTakenError, Taken, take_jpeg
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
    store: Store = DEFAULT_STORE


class Task(NamedTuple):
    """One image to convert."""

    name: str
    label: int
    image: Path | Pixels
    mask: Path | None
    """The mask's file, whether it exists or not; None if the method is to make it."""
    position: int = 0
    """The image's place in its split's list."""


class Sample(NamedTuple):
    """One converted image, as small as it will be stored."""

    name: str
    label: int
    mode: int
    """How the picture is stored: a mode of `harl_fast.data.imagefield`."""
    image: bytes
    height: int
    width: int
    mask: bytes
    """`pack_mask` of the mask."""
    stand_in: bool
    """The method found nothing sound and the centre ellipse serves."""
    mask_problem: str
    """Why the mask file could not serve and the method did; empty if it did or none was given."""
    reencoded: str = ""
    """Why passthrough did not take the file's own bytes; empty if it did or was not asked for."""


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
    side_px, store = settings.max_resolution, settings.store
    taken, refusal = None, ""
    if store.kind == "passthrough":
        taken, refusal = _take(task, side_px)
    if taken is not None:
        decoded, rgb = Decoded(taken.rgb, 1, taken.rgb.shape[1::-1]), taken.rgb
        mode, image = MODE_JPG, taken.data
    else:
        if isinstance(task.image, np.ndarray):
            decoded = Decoded(task.image, 1, task.image.shape[1::-1])
        else:
            decoded = decode_image(task.image, side_px=side_px)
        rgb = shrink(decoded.rgb, side_px=side_px)
        mode = store.mode(task.position)
        image = encode(rgb, mode, quality=settings.quality)
    mask, stand_in, problem = _mask(task, decoded, rgb, settings.mask_method)
    return Sample(
        name=task.name,
        label=task.label,
        mode=mode,
        image=image,
        height=rgb.shape[0],
        width=rgb.shape[1],
        mask=pack_mask(resize_mask(mask, size=settings.mask_size)).tobytes(),
        stand_in=stand_in,
        mask_problem=problem,
        reencoded=refusal,
    )


def _take(task: Task, side_px: int) -> tuple[Taken | None, str]:
    """Return a file's own bytes if they can be stored, else why not."""
    if isinstance(task.image, np.ndarray):
        return None, "no file"
    try:
        return take_jpeg(task.image, side_px=side_px), ""
    except NotTakenError as refusal:
        return None, str(refusal)


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
