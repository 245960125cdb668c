"""What image files state of themselves, and decoders pass over: checksums and amounts."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from preprocess.png import check_png
from preprocess.tiff import check_tiff


def check_sums(image: Image.Image, stream: BinaryIO) -> None:
    """Raise `UnusableImageError` if an opened file does not have what it states.

    PNG states a checksum per chunk and one of its pixels, and deflated TIFF one per strip or tile;
    both state how many bytes their pixels take, and so does an uncompressed TIFF. Damage to a
    JPEG's pixels mostly breaks its code, which decoders notice.

    What cannot be known: BMP, GIF, WebP, and JPEG, fax, LZW and PackBits inside TIFF have no
    checksum here. What is cut off is noticed, and so is code that cannot be; other wrong pixels are
    not. Any bytes are pixels of a BMP or an uncompressed TIFF, and nearly any are of a WebP. Wrong
    pixels whose checksums were made anew are as good as right ones.
    """
    place = stream.tell()
    if image.format == "PNG":
        check_png(stream)
    elif image.format == "TIFF":
        check_tiff(image, stream)
    stream.seek(place)
