"""Which JPEG files may be stored as they are: those the loader reads, upright, small and sound."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ffcv.libffcv import imdecode
from PIL import Image

from harl_fast.data.jpegfile import LAYOUT, OK, parse_jpeg
from harl_fast.files import open_regular
from preprocess.encode import largest_image
from preprocess.icc import is_srgb
from preprocess.images import FILE_LIMIT, Pixels, orientation_of

SAMPLINGS = {
    (2, 2): "4:2:0",
    (2, 1): "4:2:2",
    (1, 2): "4:4:0",
    (1, 1): "4:4:4",
}
"""Horizontal and vertical luma samples to each pair of chroma samples."""
BASELINE, EXTENDED = 0xC0, 0xC1
_FRAMES = {
    0xC2: "progressive",
    0xC3: "lossless",
    0xC9: "arithmetic coding",
    0xCA: "arithmetic coding",
}
_SOS, _EOI, _APP14, _APP0 = 0xDA, 0xD9, 0xEE, 0xE0
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
"""DHT, JPG and DAC lie among the frame markers SOF0 to SOF15."""


class NotTakenError(Exception):
    """A file that has to be encoded again; the message is the reason that reports count."""


@dataclass(frozen=True)
class Taken:
    """A file's bytes and what they decode to: (H, W, 3) uint8 RGB."""

    data: bytes
    rgb: Pixels


class _Header(NamedTuple):
    """What lies before a JPEG's first scan."""

    frame: int
    """Its SOF marker's second byte."""
    bits: int
    height: int
    width: int
    components: tuple[tuple[int, int, int], ...]
    """(id, horizontal, vertical sampling factor) each."""
    jfif: bool
    adobe_transform: int | None


def take_jpeg(path: Path, *, side_px: int, icc: bool = True) -> Taken:
    """Return the bytes of a JPEG file that the loader reads as they are; else `NotTakenError`.

    It has at most ``side_px`` on its longest side, is upright, and decodes without any of
    libjpeg's warnings, which Pillow passes over. It is decoded once, for its mask, with libjpeg's
    fast transform (FFCV's choice): about one level beside the exact one. icc: refuse files with a
    colour profile that would change their pixels.
    """
    try:
        with open_regular(path, limit=FILE_LIMIT) as stream:
            data = stream.read()
    except OSError:
        raise NotTakenError("unreadable") from None
    header = _checked_header(data)
    if max(header.height, header.width) > side_px:
        raise NotTakenError("larger than max_resolution")
    if len(data) > largest_image(side_px):
        raise NotTakenError("more bytes than raw pixels")
    _check_picture(data, icc=icc)
    rgb = np.empty((header.height, header.width, 3), np.uint8)
    source = np.frombuffer(data, np.uint8)
    if parse_jpeg(source, np.zeros(LAYOUT, np.int64)) != OK:
        raise NotTakenError("a kind that the loader does not read")
    size = header.height, header.width
    if imdecode(source, rgb, *size, *size) != 0:
        raise NotTakenError("libjpeg warns: damaged or cut short")
    return Taken(data, rgb)


def _checked_header(data: bytes) -> _Header:
    header = _read_header(data)
    if header.frame not in (BASELINE, EXTENDED) or header.bits != 8:
        raise NotTakenError(_FRAMES.get(header.frame, "not baseline 8 bit"))
    if header.height == 0 or header.width == 0:
        raise NotTakenError("size not in its header")
    if len(header.components) == 1:
        return header
    if len(header.components) != 3 or not _is_ycbcr(header):
        raise NotTakenError("colours other than YCbCr")
    luma, *chroma = [factors[1:] for factors in header.components]
    if luma not in SAMPLINGS or chroma != [(1, 1), (1, 1)]:
        raise NotTakenError("unusual chroma sampling")
    return header


def _is_ycbcr(header: _Header) -> bool:
    """Return what libjpeg takes three components for (jdapimin.c, default_decompress_parms)."""
    if header.jfif:
        return True
    if header.adobe_transform is not None:
        return header.adobe_transform != 0
    return bytes(component[0] for component in header.components) != b"RGB"


def _read_header(data: bytes) -> _Header:
    """Return what a JPEG says of itself before its first scan (ITU-T T.81, B.1 and B.2)."""
    if data[:2] != b"\xff\xd8":
        raise NotTakenError("not a JPEG")
    place, jfif, transform, frame = 2, False, None, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if marker == _APP0 and body[:5] == b"JFIF\0":
            jfif = True
        elif marker == _APP14 and body[:5] == b"Adobe" and len(body) >= 12:
            transform = body[11]
        elif 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            frame = marker, body
        elif marker == _SOS:
            break
        place += 2 + length
    if frame is None or len(frame[1]) < 6 or len(frame[1]) < 6 + 3 * frame[1][5]:
        raise NotTakenError("no sound JPEG header")
    kind, body = frame
    factors = [body[6 + 3 * number : 9 + 3 * number] for number in range(body[5])]
    return _Header(
        frame=kind,
        bits=body[0],
        height=int.from_bytes(body[1:3], "big"),
        width=int.from_bytes(body[3:5], "big"),
        components=tuple((each[0], each[1] >> 4, each[1] & 15) for each in factors),
        jfif=jfif,
        adobe_transform=transform,
    )


def _check_picture(data: bytes, *, icc: bool) -> None:
    """Raise `NotTakenError` unless Pillow, too, sees one upright picture, in sRGB."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            plain = image.format == "JPEG" and orientation_of(image) == 1
            profile = image.info.get("icc_profile") if icc else None
            foreign = bool(profile) and not is_srgb(profile, image.mode)
    except Exception as error:  # Pillow raises nearly anything on damaged files; reports count it
        raise NotTakenError(f"Pillow does not read it ({type(error).__name__})") from error
    if not plain:
        raise NotTakenError("EXIF orientation or several pictures")
    if foreign:
        raise NotTakenError("a colour profile other than sRGB")
