"""What a TIFF states of itself: where its strips or tiles lie, how much they hold, their sums."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, ImagePalette, TiffImagePlugin

from harl_fast.data.container.integrity import MOST_PIXELS
from preprocess.images.inflate import Inflation
from preprocess.images.listing import TIFF_STARTS
from preprocess.images.reading import UnusableImageError

TAG_BITS, TAG_PHOTOMETRIC, TAG_FILL_ORDER, TAG_SAMPLE_FORMAT = 258, 262, 266, 339
TAG_NODATA = 42113
"""GDAL's: a value, as a text, of pixels that have none."""
STATED_RANGES = ((340, 341), (280, 281))
"""Tags of the least and the greatest value: of any type, and of unsigned ones."""
_WIDTH, _HEIGHT, _COMPRESSION, _SAMPLES, _PLANAR = 256, 257, 259, 277, 284
_STRIPS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_COLOUR_MAP, _INK_SET, _EXTRA_SAMPLES, _SUBSAMPLING = 320, 332, 338, 530
_KIND, _OLD_KIND = 254, 255
"""Tags of TIFF 6.0."""
WHITE_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR = 0, 2, 3, 5, 6
_CMYK = 1
_RAW, _OLD_JPEG, _DEFLATE = 1, 6, (8, 32946)
_SEPARATE = 2
_LOWEST_BIT_FIRST = 2
_ASIDE = 1 | 4
"""Values of the tags photometric, ink set, compression, planar configuration, fill order, kind of
frame."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in reverse."""
_NATIVE = {
    "F;32F": "F;32NF", "F;32BF": "F;32NF", "I;16S": "I;16NS", "I;16BS": "I;16NS",
    "I;32S": "I;32NS", "I;32BS": "I;32NS",
}  # fmt: skip
"""Pillow's raw modes of deep greys in the file's byte order, and in that of this machine."""
TAG_ERRORS = (SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error)
"""What Pillow raises on broken tags, but not on damaged pixels (OSError)."""
_BLOCK = 1 << 20


def read_header(stream: BinaryIO) -> bytes:
    """Return the header at a TIFF's start, with the place of its first directory."""
    stream.seek(0)
    head = stream.read(16)
    return head if head[:4] in TIFF_STARTS[2:] else head[:8]


def pages(image: Image.Image) -> Iterator[int]:
    """Yield the numbers of an opened TIFF's pages: 0, and its further frames.

    Smaller copies of a page and masks (tags 254 and 255) are none. The list ends where it is
    damaged or leads back.
    """
    yield 0
    stream, number = image.fp, 0  # type: ignore[attr-defined]
    assert stream is not None
    head = read_header(stream)
    place = image.tag_v2.next  # type: ignore[attr-defined]
    seen = {0, TiffImagePlugin.ImageFileDirectory_v2(head).next}  # none, and the first
    while place not in seen:
        seen.add(place)
        number += 1
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        stream.seek(place)
        with contextlib.suppress(*TAG_ERRORS):
            tags.load(stream)
            if _WIDTH in tags and not (tags.get(_KIND, 0) & _ASIDE or tags.get(_OLD_KIND) == 2):
                yield number
        place = tags.next  # still the first's if nothing could be read


class _Layout(NamedTuple):
    """How a TIFF's pixels are cut into pieces."""

    name: str
    """``strip`` or ``tile``."""
    width: int
    height: int
    """Of a piece, in pixels."""
    per_plane: int
    planes: tuple[int, ...]
    """Bits per pixel of each plane."""


def check_tiff(image: Image.Image, stream: BinaryIO) -> None:
    """Raise `UnusableImageError` unless an opened TIFF has the strips or tiles that its size needs.

    They lie inside the file; uncompressed ones have bytes enough for their rows; deflated ones
    have enough and not more, and their checksums are right. The deprecated kind of JPEG in TIFF
    (compression 6) is not judged: its strips need not be stated. A palette of no value above 255
    is taken for one of 8 bits, as libtiff's tools do.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(TAG_PHOTOMETRIC) == _INKS and tags.get(_INK_SET, _CMYK) != _CMYK:
        raise UnusableImageError(
            f"a TIFF of inks that are not CMYK (InkSet {tags[_INK_SET]}): save it as RGB"
        )
    compression = tags.get(_COMPRESSION, _RAW)
    if compression == _OLD_JPEG:
        return
    layout = _layout(tags)
    file_bytes = stream.seek(0, os.SEEK_END)
    places = _places(tags, layout, file_bytes)
    _turn_bits(image)
    _take_native_order(image)
    if image.mode in ("P", "PA") and max(tags[_COLOUR_MAP]) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOUR_MAP]))
    for index, (start, length) in enumerate(places):
        plane, number = divmod(index, layout.per_plane)
        rows = layout.height
        if layout.name == "strip":  # the last one may end with the picture or be filled up
            rows = min(rows, tags[_HEIGHT] - number * rows)
        least = _piece_bytes(tags, layout, plane, rows)
        problem = ""
        if start < 1 or length < 1 or start + length > file_bytes:
            problem = "is empty or lies outside the file"
        elif compression == _RAW and length < least:
            problem = f"has {length} bytes, its rows need {least}"
        elif compression in _DEFLATE:
            stream.seek(start)
            most = _piece_bytes(tags, layout, plane, layout.height)
            problem = _inflation_problem(stream, length, least, most, reverse=_is_reversed(tags))
        if problem:
            raise UnusableImageError(f"damaged: {layout.name} {index + 1} of the TIFF {problem}")


def _is_reversed(tags: Any) -> bool:
    """Return whether the bits of each byte are in reverse, also of compressed ones."""
    return bool(tags.get(TAG_FILL_ORDER) == _LOWEST_BIT_FIRST)


def _turn_bits(image: Any) -> None:
    """Let libtiff read an opened TIFF whose bits are in reverse, which it turns.

    Pillow does so if it is compressed, and lacks some of the raw modes it would need otherwise.
    """
    tags = image.tag_v2
    if _is_reversed(tags) and not image.use_load_libtiff:
        raw_mode = image.tile[0].args[0].removesuffix("R").removesuffix(";")
        whole = (0, 0, tags[_WIDTH], tags[_HEIGHT])
        image.tile = [
            image.tile[0]._replace(
                codec_name="libtiff", extents=whole, offset=0, args=(raw_mode, False, tags.offset)
            )
        ]
        image.use_load_libtiff = True


def _take_native_order(image: Any) -> None:
    """Let Pillow take what libtiff decompresses in this machine's byte order, as that gives it.

    It does so by itself for unsigned values of 16 bits alone.
    """
    image.tile = [
        tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
        if tile.codec_name == "libtiff"
        else tile
        for tile in image.tile
    ]


def has_unnamed_alpha(image: Image.Image) -> bool:
    """Return whether an opened TIFF has RGB and a fourth value, but no tag that says of what.

    TIFF 6.0 (page 31) wants one. OpenCV writes transparency without, and Pillow reads it as such.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    return _lacks_name(tags) and _EXTRA_SAMPLES not in tags


def _lacks_name(tags: Any) -> bool:
    rgb = tags.get(TAG_PHOTOMETRIC) == _RGB
    return rgb and tags.get(_SAMPLES, 1) > 3 and not any(tags.get(_EXTRA_SAMPLES, ()))


def _layout(tags: Any) -> _Layout:
    width, height, samples = tags[_WIDTH], tags[_HEIGHT], tags.get(_SAMPLES, 1)
    bits = tags.get(TAG_BITS, (1,))
    planes = (bits * samples if len(bits) == 1 else bits)[:samples]
    if tags.get(TAG_PHOTOMETRIC) == _PALETTE and len(tags[_COLOUR_MAP]) != 3 << planes[0]:
        raise UnusableImageError("damaged: the TIFF's palette is not as long as its bits need")
    if tags.get(_PLANAR, 1) != _SEPARATE:
        planes = (sum(planes),)
    elif _lacks_name(tags):
        raise UnusableImageError(
            "a TIFF of RGB and a fourth value without a name, in separate planes, cannot be read: "
            "save it as RGB, or with each pixel's samples together (PlanarConfiguration 1)"
        )
    elif samples == 2:
        raise UnusableImageError(
            "a TIFF of a grey and a second value in separate planes cannot be read: save it with "
            "each pixel's samples together (PlanarConfiguration 1)"
        )
    elif tags.get(_COMPRESSION, _RAW) == _RAW and not _plain(tags, planes):
        raise UnusableImageError(
            f"an uncompressed TIFF of {'/'.join(map(str, planes))} bits, photometric "
            f"{tags.get(TAG_PHOTOMETRIC)}, in separate planes cannot be read: save it with each "
            f"pixel's samples together (PlanarConfiguration 1), or compressed"
        )
    tiled = _TILE_WIDTH in tags or _TILES in tags
    if tiled and _STRIPS in tags:
        raise UnusableImageError("damaged: the TIFF states both strips and tiles")
    piece = (
        (tags[_TILE_WIDTH], tags[_TILE_HEIGHT])
        if tiled
        else (width, min(height, tags.get(_ROWS_PER_STRIP, height)))
    )
    if min(piece) < 1:
        raise UnusableImageError("damaged: the TIFF's strips or tiles have no rows")
    count = -(-width // piece[0]) * -(-height // piece[1])
    if tiled and count * piece[0] * piece[1] > MOST_PIXELS:
        raise UnusableImageError(
            f"the TIFF's {count} tiles of {piece[0]} x {piece[1]} have more than {MOST_PIXELS:,} "
            f"pixels: save it with smaller tiles or in strips"
        )
    return _Layout("tile" if tiled else "strip", *piece, count, planes)


def _plain(tags: Any, planes: tuple[int, ...]) -> bool:
    """Return whether Pillow reads planes right; it knows no other way than this to unpack them."""
    return (
        set(planes) == {8} and not _is_reversed(tags) and tags.get(TAG_PHOTOMETRIC) != WHITE_IS_ZERO
    )


def _places(tags: Any, layout: _Layout, file_bytes: int) -> list[tuple[int, int]]:
    """Return where the pieces start and how long they are, of a number that is right."""
    names = (_TILES, _TILE_BYTES) if layout.name == "tile" else (_STRIPS, _STRIP_BYTES)
    starts, lengths = (tags.get(name, ()) for name in names)
    needed = layout.per_plane * len(layout.planes)
    if len(starts) != needed or len(lengths) != needed:
        raise UnusableImageError(
            f"damaged: the TIFF states {len(starts)} places and {len(lengths)} lengths of "
            f"{layout.name}s, its size needs {needed}"
        )
    if sum(lengths) > file_bytes:  # a piece read again and again is one way to make a bomb
        raise UnusableImageError(f"damaged: the TIFF's {layout.name}s lie over each other")
    return list(zip(starts, lengths, strict=True))


def _piece_bytes(tags: Any, layout: _Layout, plane: int, rows: int) -> int:
    """Return how many bytes some rows of a strip or tile take before they are compressed."""
    if (
        tags.get(TAG_PHOTOMETRIC) == _YCBCR
        and tags.get(_COMPRESSION, _RAW) != _RAW  # Pillow knows no subsampling of these
        and len(layout.planes) == 1
        and layout.planes[0] == 24
    ):
        across, down = map(int, tags.get(_SUBSAMPLING, (2, 2)))
        return -(-layout.width // across) * -(-rows // down) * (across * down + 2)
    return rows * ((layout.width * layout.planes[plane] + 7) // 8)


def _inflation_problem(
    stream: BinaryIO, length: int, least: int, most: int, *, reverse: bool
) -> str:
    """Return what is wrong with a deflated piece; reverse: whether its bytes' bits are turned."""
    inflation = Inflation(most)
    try:
        while length and not inflation.ended and (block := stream.read(min(length, _BLOCK))):
            inflation.add(block.translate(_REVERSED) if reverse else block)
            length -= len(block)
    except zlib.error as error:
        return f"is damaged: {error}"
    problem = inflation.problem(least)
    return f"is wrong: its data {problem}" if problem else ""
