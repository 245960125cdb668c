"""Palettes that count up from black, which Pillow takes for none at all in BMP and GIF."""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL import GifImagePlugin, ImageFile, ImagePalette
from PIL.BmpImagePlugin import BIT2MODE

from preprocess.images.reading import UnusableImageError

_FILE_HEAD, _CORE_HEAD = 14, 12
"""Bytes of a BMP's BITMAPFILEHEADER, which a DIB lacks, and of the oldest header behind it."""

# Without this an image whose own palette is such a one gets the colours of the file's other one.
GifImagePlugin.GifImageFile._is_palette_needed = lambda *_: True  # type: ignore[method-assign]


def keep_palette(image: ImageFile.ImageFile, stream: BinaryIO) -> None:
    """Give an opened BMP or GIF the palette in its file; `UnusableImageError` for a GIF without.

    From a BMP's of black and white, or of greys in turn, Pillow concludes that the pixels are of 1
    or 8 bits, whatever the file says of them, and forgets which colours there are.
    """
    if image.format == "GIF":
        if image.mode == "L":
            raise UnusableImageError("damaged: the GIF has no palette")
        return
    if image.mode not in ("1", "L"):
        return
    start = _FILE_HEAD if image.format == "BMP" else 0
    stream.seek(start)
    head = stream.read(36)
    size = struct.unpack_from("<I", head)[0]
    core = size == _CORE_HEAD
    bits = struct.unpack_from("<H", head, 10 if core else 14)[0]
    colours = 0 if core else struct.unpack_from("<I", head, 32)[0]
    stream.seek(start + size)
    entry = "BGR" if core else "BGRX"
    table = stream.read(len(entry) * (colours or 1 << bits))
    image._mode, raw_mode = BIT2MODE[bits]
    image.palette = ImagePalette.raw(entry, table)
    (tile,) = image.tile
    assert isinstance(tile.args, tuple)
    image.tile = [tile._replace(args=(raw_mode, *tile.args[1:]))]
