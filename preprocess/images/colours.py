"""Pixels of any format that a file may hold as 8-bit RGB."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from harl_fast.options import to_float
from preprocess.images.arrays import Pixels
from preprocess.images.icc import SPACES, convert_profile
from preprocess.images.reading import FEW_LEVELS, UNUSABLE, GreyRange, Reading, UnusableImageError
from preprocess.images.tiff import (
    TAG_BITS,
    TAG_NODATA,
    TAG_PHOTOMETRIC,
    TAG_SAMPLE_FORMAT,
    WHITE_IS_ZERO,
)

STRIP_PIXELS = 1 << 20
"""Larger images are converted in strips of about this many pixels: the copies that a conversion
makes, of up to 20 bytes per pixel, then never exist for all of an image."""
LEAST_LEVELS = 64
"""Of 8-bit greys. Images that are left with fewer, and had more, are remarked."""
MOST_VALUES = 1 << 23
"""Of an image, as float64, to find percentiles in."""
_NOTHING_FINITE = "no pixel has a finite value"
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""Values of the TIFF tag 339 (TIFF 6.0, page 80)."""

Values = npt.NDArray[np.generic]


class Grey(NamedTuple):
    """What the grey values of a file are; Pillow's modes do not tell."""

    dtype: np.dtype[np.generic]
    """Of the values as the file means them."""
    least: float
    greatest: float
    """Of the file's type; for 12 bits 0 and 4095. Both 0 for floating point, which has none."""
    inverted: bool
    """Whether the least value is white."""
    alpha: bool = False
    """Whether a second value follows each grey, of its type, which says how opaque it is."""
    nodata: float = math.nan
    """A value that stands for none; NaN: there is no such."""

    def values(self, image: Image.Image) -> Values:
        """Return the (H, W) values of an image or of a strip of it."""
        return np.asarray(image).view(self.dtype)[:, :: 1 + self.alpha]

    def counting(self, image: Image.Image, step: int = 1) -> Values:
        """Return those of every ``step``-th row, (N,), that are finite and stand for something."""
        values = self.values(image)[::step]
        known: npt.NDArray[np.bool_] = values != self.nodata
        if self.dtype.kind == "f":
            known &= np.isfinite(values)
        return values[known]


def deep_grey(image: Image.Image) -> Grey | None:
    """Return what an image's grey values are unless they are unsigned and of 8 bits or fewer.

    Pillow reads 16-bit greys of all kinds as mode I;16 or I, 32-bit ones as I, and takes signed
    8-bit ones for unsigned: TIFF's tags tell which they are. Of PNG alone `png.keep_low_bytes`
    makes a mode I.
    """
    if image.format == "PNG" and image.mode == "I":
        return Grey(np.dtype(">u2"), 0.0, 2.0**16 - 1, inverted=False, alpha=True)
    tags = getattr(image, "tag_v2", {})
    kind = int(tags.get(TAG_SAMPLE_FORMAT, (UNSIGNED,))[0])
    if not (image.mode in ("I", "F") or image.mode.startswith("I;16") or kind == SIGNED):
        return None
    inverted = image.format == "TIFF" and tags.get(TAG_PHOTOMETRIC, 0) == WHITE_IS_ZERO
    bits = int(tags.get(TAG_BITS, (16,))[0])
    nodata = _nodata(tags.get(TAG_NODATA))
    if image.mode == "F" or kind == FLOAT:
        return Grey(np.dtype(np.float32), 0.0, 0.0, inverted, nodata=nodata)
    held = np.asarray(image.crop((0, 0, 1, 1))).dtype
    if kind == SIGNED:
        signed = np.dtype(f"{held.byteorder}i{held.itemsize}")
        ends = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        return Grey(signed, *ends, inverted, nodata=nodata)
    unsigned = np.dtype(f"{held.byteorder}u{held.itemsize}")
    return Grey(unsigned, 0.0, 2.0**bits - 1, inverted, nodata=nodata)


def _nodata(text: object) -> float:
    """Return the value that GDAL's tag names, NaN if it is none."""
    try:
        return to_float(str(text).strip(" \0"))
    except ValueError:
        return math.nan


def is_plain_rgb(image: Image.Image, reading: Reading) -> bool:
    """Return whether `to_rgb` would return a JPEG's pixels as they are."""
    return image.mode == "RGB" and not (reading.icc and "icc_profile" in image.info)


def to_rgb(image: Image.Image, reading: Reading) -> tuple[Pixels, tuple[str, ...]]:
    """Return a loaded image of any mode as (H, W, 3) uint8 RGB, and remarks on what that did.

    Transparency is laid on white. Greys of more than 8 bits follow ``reading.grey``. Raises
    `UnusableImageError` for pixels without defined colours.
    """
    grey = deep_grey(image)
    convert = _conversion(image, grey, reading)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        rgb, remark = convert(image)
    else:
        rgb, remark = np.empty((height, width, 3), np.uint8), ""
        for top, strip in _strips(image, rows):
            rgb[top : top + rows], remark = convert(strip)
    few = FEW_LEVELS if grey is not None and _has_lost_levels(image, grey, rgb) else ""
    return rgb, tuple(filter(None, (remark, few)))


def _has_lost_levels(image: Image.Image, grey: Grey, rgb: Pixels) -> bool:
    """Return whether fewer than `LEAST_LEVELS` are left, and fewer than the image had."""
    left = np.count_nonzero(cv2.calcHist([rgb], [0], None, [256], [0, 256]))
    had = np.empty(0, grey.dtype)
    for _, strip in _strips(image, rows=16) if left < LEAST_LEVELS else ():
        had = np.union1d(had, grey.counting(strip))
        if had.size > left:
            return True
    return False


def _strips(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _conversion(
    image: Image.Image, grey: Grey | None, reading: Reading
) -> Callable[[Image.Image], tuple[Pixels, str]]:
    """Return what turns an image, or strips of it, into pixels and a remark on its profile.

    grey: of the image; strips know less of their file.
    """
    if grey is not None:
        to_8_bit = _scaling(image, grey, reading.grey)
    # Programs that know no alpha leave its bytes of a BMP at zero.
    blank = image.format in ("BMP", "DIB") and image.mode == "RGBA" and not _greatest_alpha(image)
    # Pillow reads every CMYK JPEG as inverted; that is Adobe's habit, marked by APP14.
    adobe = "adobe" in image.info or image.format not in ("JPEG", "MPO")
    # None if Pillow found a profile but not the whole of it.
    profile = image.info.get("icc_profile", b"") if reading.icc else b""

    def convert(strip: Image.Image) -> tuple[Pixels, str]:
        strip = strip.convert("RGB") if blank else strip
        plain = _plain(strip, adobe=adobe) if grey is None else to_8_bit(strip)
        remark = UNUSABLE if profile is None else ""
        if profile:
            plain, remark = convert_profile(plain, profile)
        return np.asarray(plain if plain.mode == "RGB" else plain.convert("RGB")), remark

    return convert


def _greatest_alpha(image: Image.Image) -> int:
    return max(
        int(np.asarray(strip.getchannel("A")).max()) for _, strip in _strips(image, rows=256)
    )


def _plain(image: Image.Image, *, adobe: bool) -> Image.Image:
    """Return an image of 8 bits per value as RGB, L or CMYK, with transparency laid on white."""
    mode = image.mode
    if mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        grey = mode in ("L", "LA", "La")
        return Image.alpha_composite(white, rgba).convert("L" if grey else "RGB")
    if mode == "CMYK":
        return image if adobe else ImageChops.invert(image)
    if mode not in ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV"):
        raise UnusableImageError(f"pixel format {mode} has no defined colours: save it as RGB")
    return image if mode in SPACES else image.convert("L" if mode == "1" else "RGB")


def _scaling(
    image: Image.Image, grey: Grey, wanted: GreyRange
) -> Callable[[Image.Image], Image.Image]:
    """Return what makes 8-bit greys of an image with deeper ones, or of strips of it."""
    ends = _ends(image, grey, wanted)
    native, short = grey.dtype.newbyteorder("="), grey.dtype.itemsize <= 2
    every = np.arange(1 << 8 * grey.dtype.itemsize).astype(f"u{native.itemsize}") if short else None
    table = None if every is None else _levels(every.view(native), ends, grey.inverted)
    see_through = image.info.get("transparency")

    def to_8_bit(strip: Image.Image) -> Image.Image:
        values = grey.values(strip).astype(native, copy=False)
        if every is not None and table is not None:
            levels = table[values.view(every.dtype)]
        else:
            levels = _levels(values, ends, grey.inverted)
        if isinstance(see_through, int):
            levels[values == see_through] = 255
        if grey.alpha:
            share = np.asarray(strip).view(grey.dtype)[:, 1::2] / grey.greatest
            levels = np.rint(255 - share * (255.0 - levels)).astype(np.uint8)
        return Image.fromarray(levels)

    return to_8_bit


def _levels(values: Values, ends: tuple[float, float], inverted: bool) -> Pixels:
    low, high = ends
    scale = 255 / (high - low) if high > low else 0.0  # a single value is black
    with np.errstate(invalid="ignore"):  # NaN, made black below
        steps = (values.astype(np.float64) - low) * scale
    levels: Pixels = np.rint(np.nan_to_num(steps, posinf=255.0, neginf=0.0).clip(0, 255)).astype(
        np.uint8
    )
    return 255 - levels if inverted else levels


def _ends(image: Image.Image, grey: Grey, wanted: GreyRange) -> tuple[float, float]:
    """Return the values that become 0 and 255."""
    if wanted.kind == "fixed":
        strips = _strips(image, rows=64)
        if not any(grey.counting(strip).size for _, strip in strips):
            raise UnusableImageError(_NOTHING_FINITE)
        return wanted.low, wanted.high
    if wanted.kind == "minmax":
        rows = max(1, STRIP_PIXELS // image.width)
        parts = [grey.counting(strip) for _, strip in _strips(image, rows)]
        full = [part for part in parts if part.size]
        if not full:
            raise UnusableImageError(_NOTHING_FINITE)
        return min(float(p.min()) for p in full), max(float(p.max()) for p in full)
    if wanted.kind == "percentile":
        return percentiles(image, grey, wanted.low, wanted.high)
    if grey.dtype.kind == "f":
        raise UnusableImageError(
            "floating-point greys have no full range: give --range minmax or --range LOW:HIGH"
        )
    return grey.least, grey.greatest


def percentiles(image: Image.Image, grey: Grey, low: float, high: float) -> tuple[float, float]:
    """Return the values that ``low`` and ``high`` percent of `sampled` ones lie below.

    As `numpy.percentile` has it.
    """
    first, last = np.percentile(sampled(image, grey), (low, high))
    return float(first), float(last)


def sampled(image: Image.Image, grey: Grey) -> npt.NDArray[np.float64]:
    """Return a deep grey's values that count, (N,); `UnusableImageError` if there are none.

    Of images of over `MOST_VALUES` pixels only every so many rows are looked at.
    """
    step = -(-image.width * image.height // MOST_VALUES)
    parts = [grey.counting(strip, step) for _, strip in _strips(image, rows=64 * step)]
    values = np.concatenate(parts).astype(np.float64)
    if not values.size:
        raise UnusableImageError(_NOTHING_FINITE)
    return values
