"""Fingerprints of source files, by which an addition tells known images from others of a name."""

from __future__ import annotations

import hashlib
import os
from typing import IO

from preprocess.images.arrays import Pixels

NONE = 0
"""Stands for an image whose fingerprint is not known."""
_BLOCK = 1 << 12
"""Bytes of each part of a file that is looked at."""


def file_print(stream: IO[bytes]) -> int:
    """Return 64 bits of a file's size and its first, middle and last 4 kB: all of up to 8 kB.

    The stream's position is as before.
    """
    place = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    parts = [str(size).encode()]
    for start in (0, (size - _BLOCK) // 2, size - _BLOCK):
        stream.seek(max(0, start))
        parts.append(stream.read(_BLOCK))
    stream.seek(place)
    return _digest(*parts)


def pixel_print(pixels: Pixels) -> int:
    """Return 64 bits of (H, W, 3) pixels in memory."""
    return _digest(str(pixels.shape).encode(), pixels.tobytes())


def _digest(*parts: bytes) -> int:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return int.from_bytes(found.digest(), "little")
