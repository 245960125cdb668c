"""Embedded colour profiles: what a file calls red becomes what sRGB calls that red."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from preprocess.images.arrays import Pixels
from preprocess.images.reading import CONVERTED, UNUSABLE

NEAR = 2
"""A profile whose conversion moves no tested colour by more levels than this is sRGB: the usual
sRGB profiles differ from each other by the rounding of their tables."""
KEPT = 32
"""Conversions remembered by a process. Sets have few profiles; a CMYK one takes megabytes."""
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
"""The colour space that a profile must have for pixels of each mode."""


def convert_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """Return an image of mode RGB, L or CMYK in sRGB, and what was done: a remark or nothing.

    An image whose profile is sRGB comes back as it is, and so does one whose profile LittleCMS does
    not read or that belongs to another colour space, with the remark `UNUSABLE`. Else it has mode
    RGB: relative colorimetric with black point compensation, as is usual for photographs.
    """
    try:
        transform = _transform(profile, image.mode)
    except ImageCms.PyCMSError:
        return image, UNUSABLE
    if transform is None:
        return image, ""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it returns None only if asked to work in place
    return converted, CONVERTED


def is_srgb(profile: bytes, mode: str) -> bool:
    """Return whether a profile leaves pixels as they are, which an unusable one does as well."""
    try:
        return _transform(profile, mode) is None
    except ImageCms.PyCMSError:
        return True


@functools.lru_cache(maxsize=KEPT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what converts pixels to sRGB, or None if they are; `PyCMSError` if nothing can."""
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    if source.profile.xcolor_space != SPACES[mode]:
        raise ImageCms.PyCMSError(f"a profile of {source.profile.xcolor_space} on {mode} pixels")
    transform = ImageCms.buildTransform(
        source,
        _srgb(),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    moved = ImageCms.applyTransform(probe, transform)
    distance = np.asarray(moved, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return None if np.abs(distance).max() <= NEAR else transform


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """Return an image of all greys, or of 16 levels of each colour in all combinations."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    lattice: Pixels = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(lattice.reshape(64, 64, 3))
