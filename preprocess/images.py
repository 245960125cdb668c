"""Image files of any kind to RGB pixels, by rule, or an error that says why not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from preprocess.soundness import load_judged

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF")
"""The only decoders Pillow may pick, by content: a file named .jpg must not start Ghostscript."""

PIXEL_LIMIT = 200_000_000
"""Larger images are refused by their header: 200 million pixels take 0.6 GB as RGB."""

SIDE_LIMIT = 65_500
"""A JPEG's longest side (libjpeg's JPEG_MAX_DIMENSION); the container's fields end at 65,535."""

# `PIXEL_LIMIT` stands in for Pillow's own check, which would refuse some large photographs.
Image.MAX_IMAGE_PIXELS = None

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes each EXIF orientation upright (EXIF 2.32, tag 0x0112)."""


class UnusableImageError(Exception):
    """A file that cannot become a sample; the message is the reason that reports show."""


@dataclass(frozen=True)
class Decoded:
    """An upright image, and how the file held it: what a mask made for that file needs."""

    rgb: Pixels
    """(H, W, 3) uint8, upright. A large JPEG comes reduced by 2, 4 or 8."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    file_size: tuple[int, int]
    """(width, height) as the file holds it, before it is turned upright."""
    warning: str = ""
    """What is damaged in an image that was kept all the same."""


def decode_image(path: Path, *, side_px: int, keep_warned: bool = False) -> Decoded:
    """Return a file's first frame as upright RGB; `UnusableImageError` if it is unreadable.

    side_px: the longest side wanted later; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as
    long as both sides stay at least this large (12 megapixel photos: 4 times as fast).
    keep_warned: take a damaged JPEG or WebP (see `soundness`) as far as Pillow reads it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata, which does not matter here
            with Image.open(path, formats=FORMATS) as image:
                return _decode(image, side_px, keep_warned)
    except (UnusableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise UnusableImageError(f"{type(error).__name__}: {error}") from error


def _decode(image: Image.Image, side_px: int, keep_warned: bool) -> Decoded:
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise UnusableImageError(
            f"{width} x {height} pixels, more than {PIXEL_LIMIT:,}: scale it down"
        )
    orientation = orientation_of(image)
    image.draft(None, (side_px, side_px))
    image, warning = load_judged(image, (width, height))
    if warning and not keep_warned:
        raise UnusableImageError(warning)
    image.load()
    rgb = to_rgb(image)
    if image.format == "TIFF":  # Pillow has turned it upright in load()
        width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    elif orientation != 1:
        rgb = rgb.transpose(TURNS[orientation])
    return Decoded(np.asarray(rgb), orientation, (width, height), warning)


def orientation_of(image: Image.Image) -> int:
    """Return an opened image's EXIF orientation, 1 to 8."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  # a broken EXIF block around sound pixels means upright
        return 1
    return value if value in TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image of any mode as RGB, with transparency laid on white."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        # Pillow has 16-bit grey in both; its own conversion cuts off at 255 instead of scaling.
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow reads every CMYK JPEG as inverted; that is Adobe's habit, marked by APP14.
        image = ImageChops.invert(image)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise UnusableImageError(f"pixel format {mode} has no defined colours: save it as RGB")
    return image.convert("RGB")


def stored_size(height: int, width: int, *, side_px: int) -> tuple[int, int]:
    """Return the (height, width) at which an image is stored: longest side at most ``side_px``.

    FFCV's rule for ``max_resolution`` (ffcv.fields.rgb_image.resizer), but no side goes to zero.
    """
    ratio = side_px / max(height, width)
    if ratio >= 1:
        return height, width
    return max(1, int(ratio * height)), max(1, int(ratio * width))


def shrink(rgb: Pixels, *, side_px: int) -> Pixels:
    """Return (H, W, 3) pixels at their `stored_size`, by area averaging."""
    height, width = stored_size(rgb.shape[0], rgb.shape[1], side_px=side_px)
    if max(height, width) > SIDE_LIMIT:
        raise UnusableImageError(f"a side of {max(height, width)} px, a JPEG ends at {SIDE_LIMIT}")
    if (height, width) == rgb.shape[:2]:
        return rgb
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA).astype(
        np.uint8, copy=False
    )


def read_mask(path: Path, *, orientation: int, file_size: tuple[int, int]) -> Mask:
    """Return a mask file as (H, W) bool in the frame of the upright image.

    Non-zero is foreground. A mask with the proportions of the file as stored gets the image's
    EXIF turn, one with those of the upright image stays; anything else is an error.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.size[0] * image.size[1] > PIXEL_LIMIT:
                raise UnusableImageError(f"a mask of {image.size[0]} x {image.size[1]} pixels")
            image.load()
            if image.mode in ("RGBA", "LA", "PA", "CMYK", "F"):
                raise UnusableImageError(f"a mask of mode {image.mode}: save 8-bit grey, 0 = none")
            if _same_shape(image.size, file_size):
                turn = TURNS.get(orientation)
                upright = image.transpose(turn) if turn is not None else image
            elif orientation >= 5 and _same_shape(image.size, file_size[::-1]):
                upright = image
            else:
                raise UnusableImageError(
                    f"the mask has {image.size[0]} x {image.size[1]} pixels, "
                    f"its image {file_size[0]} x {file_size[1]}"
                )
            values = np.asarray(upright) != 0
    except (UnusableImageError, MemoryError):
        raise
    except Exception as error:  # as above
        raise UnusableImageError(f"{type(error).__name__}: {error}") from error
    return np.asarray(np.atleast_3d(values).any(axis=2), np.bool_)


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes agree up to a scale, to one pixel of the smaller."""
    scale = max(size) / max(other)
    slack = max(1.0, scale)
    return all(abs(a - b * scale) <= slack for a, b in zip(size, other, strict=True))
