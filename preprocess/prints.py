"""Fingerprints of the files behind samples, see `images.prints`, beside their container."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harl_fast.data.container.manifest import Manifest
from harl_fast.errors import DataError, shown
from harl_fast.files import BROKEN_ARRAYS, naming, replacing, sha256_file
from preprocess.images.decode import open_file
from preprocess.images.members import ImageRef
from preprocess.images.prints import NONE, file_print, pixel_print


def fingerprint(image: ImageRef) -> int:
    """Return an image's fingerprint, `NONE` if it is unreadable."""
    if isinstance(image, np.ndarray):
        return pixel_print(image)
    try:
        with open_file(image) as stream:
            return file_print(stream)
    except OSError:  # said when it is converted
        return NONE


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
