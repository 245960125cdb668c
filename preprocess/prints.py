"""Fingerprints of source files, by which an addition tells known images from others of a name."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast.data.container.manifest import Manifest
from harl_fast.errors import DataError, shown
from harl_fast.files import BROKEN_ARRAYS, UnusualFileError, naming, replacing, sha256_file
from preprocess.images.decode import open_file
from preprocess.images.members import ImageRef

NONE = 0
"""Stands for an image whose fingerprint is not known."""
_BLOCK = 1 << 12
"""Bytes of each part of a file that is looked at."""


def fingerprint(image: ImageRef | bytes) -> int:
    """Return 64 bits of a file's size and its first, middle and last 4 kB, `NONE` if unreadable.

    image: may be the bytes of a file. Those of up to 8 kB are covered as a whole, and so are pixels
    in memory.
    """
    if isinstance(image, np.ndarray):
        return _digest(str(image.shape).encode(), image.tobytes())
    try:
        with io.BytesIO(image) if isinstance(image, bytes) else open_file(image) as stream:
            size = stream.seek(0, os.SEEK_END)
            parts = [str(size).encode()]
            for start in (0, (size - _BLOCK) // 2, size - _BLOCK):
                stream.seek(max(0, start))
                parts.append(stream.read(_BLOCK))
    except (OSError, UnusualFileError):  # said when it is converted
        return NONE
    return _digest(*parts)


def _digest(*parts: bytes) -> int:
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return int.from_bytes(found.digest(), "little")


def prints_path(beton: Path) -> Path:
    """Return where the fingerprints of a container's source files lie."""
    return beton.with_suffix(".prints.npy")


def write_prints(beton: Path, prints: Sequence[int]) -> str:
    """Write the samples' fingerprints as (N,) uint64; returns the SHA-256 of the file."""
    path = prints_path(beton)
    with replacing(path) as temporary, naming(path), open(temporary, "wb") as stream:
        np.save(stream, np.asarray(prints, np.uint64))
    return sha256_file(path)


def read_prints(beton: Path, manifest: Manifest) -> npt.NDArray[np.uint64]:
    """Return (N,) uint64, all `NONE` if they are not there; `DataError` for another file's."""
    path = prints_path(beton)
    if not path.exists():
        return np.full(manifest.count, NONE, np.uint64)
    remedy = "Copy it again, or delete it: names alone then tell which images are there"
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error
    if manifest.prints_sha256 not in ("", digest):
        raise DataError(
            f"{path} was changed after it was written, or is of another container. {remedy}"
        )
    try:
        found = np.load(path, allow_pickle=False)
    except BROKEN_ARRAYS as error:
        raise DataError(f"{path} holds no fingerprints ({shown(str(error))}). {remedy}") from error
    expected = ((manifest.count,), np.uint64)
    if not isinstance(found, np.ndarray) or (found.shape, found.dtype) != expected:
        raise DataError(
            f"{path} is of another container: one fingerprint for each of {manifest.count:,} "
            f"samples is expected. {remedy}"
        )
    return found
