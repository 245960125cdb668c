"""Which JPEG files may be stored as they are: those the loader reads, upright, small and sound."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from harl_fast.data.views.jpeg import OK, decode_jpeg, parse_jpeg
from harl_fast.data.views.jpegheader import CHANNELS, HEIGHT, LAYOUT, REASON, REASONS, WIDTH
from harl_fast.data.views.jpegscan import judge_jpeg
from preprocess.encode import largest_image
from preprocess.images.arrays import Pixels
from preprocess.images.decode import open_file, read_orientation
from preprocess.images.icc import is_srgb
from preprocess.images.members import ImageRef
from preprocess.images.reading import DEFAULT_READING, Reading
from preprocess.images.soundness import has_zero_steps


class NotTakenError(Exception):
    """A file that has to be encoded again; the message is the reason that reports count."""


@dataclass(frozen=True)
class Taken:
    """A file's bytes, its size in pixels, and (H, W, 3) uint8 RGB if that was asked for."""

    data: bytes
    height: int
    width: int
    rgb: Pixels | None


def take_jpeg(
    image: ImageRef, *, side_px: int, reading: Reading = DEFAULT_READING, pixels: bool = True
) -> Taken:
    """Return the bytes of a JPEG file that the loader reads as they are; else `NotTakenError`.

    It has at most ``side_px`` on its longest side, is upright, has one size for all that read it,
    and decodes without any of libjpeg's warnings (see `soundness`). reading: whether files are
    refused that have a colour profile that would change their pixels, or colours where pictures of
    one channel are asked for. pixels: whether they are needed; the verdict alone takes two fifths
    of the time.
    """
    if isinstance(image, np.ndarray):
        raise NotTakenError("no file")
    try:
        with open_file(image) as stream:
            data = stream.read()
    except OSError:
        raise NotTakenError("unreadable") from None
    source, layout = np.frombuffer(data, np.uint8), np.empty(LAYOUT, np.int64)
    if parse_jpeg(source, layout) != OK:
        raise NotTakenError(REASONS[layout[REASON]])
    height, width = int(layout[HEIGHT]), int(layout[WIDTH])
    if max(height, width) > side_px:
        raise NotTakenError("larger than max_resolution")
    if len(data) > largest_image(side_px):
        raise NotTakenError("more bytes than raw pixels")
    if reading.channels == 1 and layout[CHANNELS] != 1:
        raise NotTakenError("of three channels, where one is stored")
    _check_by_pillow(data, (width, height), icc=reading.icc)
    rgb = np.empty((height, width, 3), np.uint8) if pixels else None
    status = judge_jpeg(source, (height, width)) if rgb is None else decode_jpeg(source, rgb)
    if status != OK:
        raise NotTakenError("libjpeg warns: damaged or cut short")
    return Taken(data, height, width, rgb)


def _check_by_pillow(data: bytes, size: tuple[int, int], *, icc: bool) -> None:
    """Raise `NotTakenError` unless Pillow, too, sees one upright picture of this size, in sRGB."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            seen = image.size
            plain = image.format == "JPEG" and read_orientation(image)[0] == 1
            profile = image.info.get("icc_profile") if icc else None
            foreign = bool(profile and not is_srgb(profile, image.mode))
            flat = has_zero_steps(image)
    except Exception as error:
        # Pillow raises nearly anything on damaged files; what it is, decoding for the store tells.
        raise NotTakenError("no JPEG to Pillow") from error
    if seen != size:
        raise NotTakenError("of another size to Pillow")
    if not plain:
        raise NotTakenError("EXIF orientation or several pictures")
    if flat:
        raise NotTakenError("a quantization table with zeros")
    if foreign:
        raise NotTakenError("a colour profile other than sRGB")
