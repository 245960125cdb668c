"""The checksums that image files carry, which decoders pass over."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from PIL import Image

from preprocess.reading import UnusableImageError

BLOCK = 1 << 20
PNG_START = 8
"""Bytes of a PNG's signature."""
DEFLATE = (8, 32946)
"""TIFF's compressions with a checksum; tags below say where their pieces lie."""
TAG_COMPRESSION, TAG_STRIPS, TAG_TILES = 259, (273, 279), (324, 325)


def check_sums(image: Image.Image, stream: BinaryIO) -> None:
    """Raise `UnusableImageError` if an opened file does not have the checksums that it states.

    PNG states one per chunk, and deflated TIFF one per strip or tile. Damage to a JPEG's pixels
    mostly breaks its code, which decoders notice. BMP, GIF, other TIFF and WebP have neither: what
    is cut off is noticed, and so is code that cannot be; other wrong pixels are not. Any bytes are
    pixels of a BMP or an uncompressed TIFF, and nearly any are of a WebP.
    """
    place = stream.tell()
    if image.format == "PNG":
        _check_chunks(stream)
    elif image.format == "TIFF" and image.tag_v2.get(TAG_COMPRESSION) in DEFLATE:  # type: ignore[attr-defined]
        _check_strips(image, stream)
    stream.seek(place)


def _check_chunks(stream: BinaryIO) -> None:
    stream.seek(PNG_START)
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        if len(head) < 8:
            raise UnusableImageError("damaged: the PNG ends before its last chunk")
        left, kind = struct.unpack(">I4s", head)
        found = zlib.crc32(kind)
        while left and (block := stream.read(min(left, BLOCK))):
            found, left = zlib.crc32(block, found), left - len(block)
        if left or stream.read(4) != struct.pack(">I", found):
            raise UnusableImageError(
                f"damaged: the PNG's {_shown(kind)} chunk has a wrong checksum"
            )


def _shown(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")


def _check_strips(image: Image.Image, stream: BinaryIO) -> None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    starts, lengths = TAG_STRIPS if TAG_STRIPS[0] in tags else TAG_TILES
    for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
        stream.seek(start)
        inflate, left = zlib.decompressobj(), length
        while left and (block := stream.read(min(left, BLOCK))):
            left -= len(block)
            try:
                while block:  # in pieces, for a few bytes may stand for gigabytes
                    inflate.decompress(block, BLOCK)
                    block = inflate.unconsumed_tail
            except zlib.error as error:
                raise UnusableImageError(f"damaged: a strip of the TIFF: {error}") from error
        if not inflate.eof:
            raise UnusableImageError("damaged: a strip of the TIFF ends before its checksum")
