"""What a PNG states of itself: checksums of its chunks, amount of pixels, transparency."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from preprocess.images.arrays import Pixels
from preprocess.images.inflate import Inflation
from preprocess.images.reading import UnusableImageError
from preprocess.images.unfilter import unfilter

SIGNIFICANT = "significant_bits"
"""Key of ``Image.info``: how many bits a PNG's values had originally, by its chunk sBIT."""
_BLOCK = 1 << 20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = len(_SIGNATURE)
_BEFORE_SIZE = _SIGNATURE + b"\0\0\0\rIHDR"
_AFTER_SIZE = bytes((8, 0, 0, 0, 0))
"""Of IHDR: 8 bits, grey, the only compression and family of filters, not interlaced."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_INDEXED = 3
"""A value of IHDR's colour type (PNG, third edition, section 11.2.1)."""
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""The first column and row of each pass, and the steps to the next ones (section 8.1)."""
_UNUSABLE = b"unusable"
"""Stands for colours that a PNG states in a way that is not followed; `icc` makes it a remark."""
_SRGB = bytes([1, 13, 0, 1])
"""cICP's values of sRGB (section 11.3.2.6)."""
_SAME_GAMMA = 0.05
"""Share by which gAMA may differ from 1/2.2 of sRGB; libpng's PNG_GAMMA_THRESHOLD."""
_TRANSPARENT_GREYS = {"L;2": (3, 85), "L;4": (15, 17), "L": (255, 1)}
"""The bits of tRNS that count, and what Pillow multiplies pixels by, in its raw modes of greys."""


class Chunks(PngImagePlugin.PngStream):
    """Pillow's reader of chunks, which takes text that is too large for it as if it were not there.

    A colour profile that is too large or broken is an unusable one. So is, where there is none,
    what cICP or gAMA says other than sRGB; cHRM is not looked at. ``tRNS`` of greys is scaled as
    Pillow scales the pixels; for colours of 16 bits see `deep_transparency`.
    """

    def chunk_iCCP(self, pos: int, length: int) -> bytes:
        try:
            return super().chunk_iCCP(pos, length)
        except (ValueError, SyntaxError, IndexError):  # too large, or broken
            assert self.fp is not None
            self.im_info["icc_profile"] = _UNUSABLE
            self.fp.seek(pos)
            return self.fp.read(length)

    def chunk_cICP(self, pos: int, length: int) -> bytes:
        assert self.fp is not None
        data = self.fp.read(length)
        if data != _SRGB:
            self.im_info.setdefault("icc_profile", _UNUSABLE)
        return data

    def chunk_gAMA(self, pos: int, length: int) -> bytes:
        data = super().chunk_gAMA(pos, length)
        if abs(self.im_info["gamma"] * 2.2 - 1) > _SAME_GAMMA:
            self.im_info.setdefault("icc_profile", _UNUSABLE)
        return data

    def chunk_tEXt(self, pos: int, length: int) -> bytes:
        return self._text(super().chunk_tEXt, pos, length)

    def chunk_zTXt(self, pos: int, length: int) -> bytes:
        return self._text(super().chunk_zTXt, pos, length)

    def chunk_iTXt(self, pos: int, length: int) -> bytes:
        return self._text(super().chunk_iTXt, pos, length)

    def _text(self, read: Callable[[int, int], bytes], pos: int, length: int) -> bytes:
        assert self.fp is not None
        if self.text_memory < PngImagePlugin.MAX_TEXT_MEMORY:
            try:
                return read(pos, length)
            except (ValueError, SyntaxError):  # too large, or compressed in an unknown way
                self.fp.seek(pos)
        return self.fp.read(length)

    def chunk_sBIT(self, pos: int, length: int) -> bytes:
        assert self.fp is not None
        data = self.fp.read(length)
        self.im_info[SIGNIFICANT] = min(data, default=0)
        return data

    def chunk_tRNS(self, pos: int, length: int) -> bytes:
        data = super().chunk_tRNS(pos, length)
        key: Any = self.im_info.get("transparency")
        if self.im_mode == "L":
            bits, scale = _TRANSPARENT_GREYS[self.im_rawmode]
            self.im_info["transparency"] = (key & bits) * scale
        return data


def deep_transparency(image: Image.Image, file: bytes) -> None:
    """Load a PNG of 16 bits per colour and make its transparent colour an alpha channel.

    file: its bytes. Pillow keeps the first byte of each value; read in the other order, the
    second.
    """
    key: Any = image.info.pop("transparency")
    with Image.open(io.BytesIO(file), formats=("PNG",)) as low:
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
    image.load()
    hidden = np.ones((image.height, image.width), np.bool_)
    for band, value in enumerate(key):
        hidden &= np.asarray(image.getchannel(band)) == value >> 8
        hidden &= np.asarray(low.getchannel(band)) == value & 255
    image.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))


def keep_low_bytes(image: ImageFile.ImageFile) -> None:
    """Have an opened PNG of 16-bit greys with alpha load both bytes of each, not the first alone.

    Pillow has no mode for them: a pixel's four bytes, as they lie in the file, become one value of
    mode I, see `colours.deep_grey`. Other images stay as they are.
    """
    if image.format == "PNG" and image.tile and image.tile[0].args == "LA;16B":
        image._mode = "I"
        image.tile = [tile._replace(args="I") for tile in image.tile]


def bare_grey(stream: BinaryIO, *, most: int) -> Pixels | None:
    """Return the (H, W) uint8 pixels of a sound PNG that is 8-bit grey with no chunk but these.

    None for any other file, and for over ``most`` pixels. Most masks are such files: without text
    and EXIF that could turn them, colours and transparency. They are inflated once, to be checked
    and to be read: 0.4 ms at 500 x 400 px, where `check_png` and Pillow take 0.9.
    """
    head = stream.read(len(_BEFORE_SIZE) + 8 + len(_AFTER_SIZE))
    if not (head.startswith(_BEFORE_SIZE) and head.endswith(_AFTER_SIZE)):
        return None
    width, height = struct.unpack_from(">II", head, len(_BEFORE_SIZE))
    if not 0 < width * height <= most:
        return None
    kept = list[bytes]()
    try:
        kinds = check_png(stream, kept)
    except UnusableImageError:  # said when it is opened as any other
        return None
    if kinds != {b"IHDR", b"IDAT"}:
        return None
    rows = np.frombuffer(bytearray().join(kept), np.uint8).reshape(height, 1 + width)
    pixels = np.empty((height, width), np.uint8)
    return pixels if unfilter(rows, pixels) else None


def check_png(stream: BinaryIO, kept: list[bytes] | None = None) -> set[bytes]:
    """Raise `UnusableImageError` unless a PNG's chunks have their checksums and fit its header.

    kept: receives the pixels' bytes in pieces: rows, filtered. Returns the kinds of its chunks.
    """
    pixels, has_palette, size, kinds = Inflation(-1), True, b"", set[bytes]()
    for number, (kind, data) in enumerate(_blocks(stream)):
        if (kind == b"IHDR") != (number == 0) or (kind == b"PLTE" and kind in kinds):
            raise UnusableImageError(
                "damaged: the PNG does not have one header, at its start, and one palette at most"
            )
        if kind == b"IHDR":
            pixels, has_palette = Inflation(_bytes_of_pixels(data), kept), data[9] != _INDEXED
            size = data[:8]
        elif kind == b"fcTL" and not pixels.size and data[4:20] != size + bytes(8):
            raise UnusableImageError("damaged: the PNG's first frame is not as large as the PNG")
        elif kind == b"PLTE":
            has_palette = True
        elif kind == b"IDAT":
            if not has_palette:
                raise UnusableImageError("damaged: the PNG has no palette before its pixels")
            try:
                pixels.add(data)
            except zlib.error as error:
                raise UnusableImageError(f"damaged: the PNG's pixels: {error}") from error
        kinds.add(kind)
    problem = pixels.problem(pixels.most)
    if problem:
        raise UnusableImageError(f"damaged: the PNG's pixels {problem}")
    return kinds


def _blocks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, data) of a PNG's chunks, large ones in pieces, and check their sums."""
    stream.seek(_START)
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        if len(head) < 8:
            raise UnusableImageError("damaged: the PNG ends before its last chunk")
        left, kind = struct.unpack(">I4s", head)
        found = zlib.crc32(kind)
        while left and (block := stream.read(min(left, _BLOCK))):
            yield kind, block
            found, left = zlib.crc32(block, found), left - len(block)
        if left or stream.read(4) != struct.pack(">I", found):
            name = kind.decode("ascii", "backslashreplace")
            raise UnusableImageError(f"damaged: the PNG's {name} chunk has a wrong checksum")


def _bytes_of_pixels(header: bytes) -> int:
    """Return how many bytes IDAT holds: a filter's number and the pixels, per row and pass."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    total = 0
    for left, top, right, down in _ADAM7 if interlaced else _WHOLE:
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    return total
