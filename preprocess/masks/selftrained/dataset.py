"""Images of a folder as squares with the ensemble's votes, cached beside the weight file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from harl_fast.errors import DataError, one_line, shown
from harl_fast.files import BROKEN_ARRAYS, Progress, naming, replacing
from harl_fast.pool import ordered_map
from preprocess.images.arrays import Map, Pixels
from preprocess.images.decode import decode_image
from preprocess.images.members import file_stamp
from preprocess.images.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.masks.heuristic.method import heuristic_map
from preprocess.masks.selftrained.ensemble import MEMBERS, VERSION, VOTE_SIDE, Vote, vote
from preprocess.masks.selftrained.network import square
from preprocess.sources import Choices, Rejected, read_source

CHUNK = 16
"""Images that a process of the pool votes on at a time."""
FEWEST = 16
"""Below this a network would only learn its images by heart."""
FEW = 1000
"""Below this the program says that more images would help."""


@dataclass(frozen=True)
class Dataset:
    """The readable images and the ensemble's votes on them."""

    images: Pixels
    """(N, S, S, 3) RGB."""
    shares: Pixels
    """(N, 64, 64): `Vote.share`."""
    opinions: Pixels
    """(N, M, 64, 64): `Vote.maps`."""
    agreement: Map
    """(N,): `Vote.agreement`."""
    unreadable: int
    """Files left out because they do not decode."""


def _vote_on(
    paths: list[Path], *, side: int, reading: Reading
) -> list[tuple[Pixels, Vote] | Rejected]:
    """Return each image as a (side, side) square with its vote; what a worker does."""
    cv2.setNumThreads(1)
    results: list[tuple[Pixels, Vote] | Rejected] = []
    for path in paths:
        try:
            pixels = square(decode_image(path, side_px=2 * side, reading=reading).rgb, side)
            results.append((pixels, vote(pixels)))
        except UnusableImageError as error:
            results.append(Rejected(str(path), str(error)))
    return results


def image_files(data: Path, choices: Choices, *, most: int, seed: int) -> list[Path]:
    """Return the files of a source's training images, sorted; at most ``most``, drawn by seed.

    Masks then never learn from the images that features are judged on. Raises `DataError` for a
    source of too few images, or of images that are no files.
    """
    train = read_source(data, choices).splits["train"]
    if train.root is None:
        raise DataError(f"{data} holds images that are no files; give --data a folder of images")
    files = sorted(train.root / name for name in train.names)
    if len(files) < FEWEST:
        raise DataError(
            f"{data} holds {len(files)} training images, at least {FEWEST} are needed and {FEW:,} "
            f"or more are better; give --data a folder with more"
        )
    if most < FEWEST:
        raise DataError(f"--images {most} is too few: give {FEWEST} or more, {FEW:,} if there are")
    if len(files) > most:
        files = sorted(random.Random(seed).sample(files, most))
    return files


def gather(
    files: list[Path],
    cache: Path,
    *,
    side: int,
    workers: int,
    reading: Reading = DEFAULT_READING,
) -> Dataset:
    """Return the images as (side, side) squares with votes, from ``cache`` if it holds just these.

    Raises `DataError` if fewer than `FEWEST` can be read.
    """
    key = _key(files, side, reading)
    found = _read(cache, key)
    if found is None:
        found = _made(files, side=side, reading=reading, workers=workers)
        with replacing(cache) as temporary, naming(cache), open(temporary, "wb") as stream:
            np.savez(stream, key=np.array(key), **vars(found))
    else:
        print(one_line(f"votes on {len(found.images):,} images: taken from {cache}"), flush=True)
    return found


def _made(files: list[Path], *, side: int, reading: Reading, workers: int) -> Dataset:
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    kept: list[tuple[Pixels, Vote]] = []
    rejected: list[Rejected] = []
    progress = Progress(len(files), label="votes")
    results = ordered_map(
        functools.partial(_vote_on, side=side, reading=reading),
        chunks,
        workers=min(workers, len(chunks)),
        describe=lambda paths: f"{paths[0]} or the {len(paths) - 1} files after it",
    )
    with contextlib.closing(results), progress:
        for chunk in results:
            for result in chunk:
                if isinstance(result, Rejected):
                    rejected.append(result)
                else:
                    kept.append(result)
            progress.advance(len(chunk))
    for bad in rejected[:5]:
        print(one_line(f"left out: {bad.name}: {bad.reason}"), flush=True)
    if len(rejected) > 5:
        print(f"left out: {len(rejected) - 5:,} more unreadable files", flush=True)
    if len(kept) < FEWEST:
        first = one_line(f"{rejected[0].name}: {rejected[0].reason}")
        raise DataError(
            f"only {len(kept)} of {len(files)} images can be read (first reason: {first}), at "
            f"least {FEWEST} are needed; repair the files or give --data another folder"
        )
    return Dataset(
        np.stack([pixels for pixels, _ in kept]),
        np.stack([one.share for _, one in kept]),
        np.stack([one.maps for _, one in kept]),
        np.array([one.agreement for _, one in kept], np.float32),
        len(rejected),
    )


def _key(files: list[Path], side: int, reading: Reading) -> str:
    """Return a digest of everything that decides the votes: files, their dates, the members."""
    digest = hashlib.sha256()
    probe = heuristic_map(np.arange(12288, dtype=np.uint16).astype(np.uint8).reshape(64, 64, 3))
    digest.update(f"{VERSION} {side} {sorted(MEMBERS)} {probe.sum():.3f}\n".encode())
    if reading != DEFAULT_READING:  # said only then: caches from before there was a choice serve
        digest.update(f"{reading.facts()}\n".encode())
    for path in files:
        size, time_ns = file_stamp(path)
        digest.update(os.fsencode(path.resolve()))
        digest.update(f"\0{size}\0{time_ns}\n".encode())
    return digest.hexdigest()


def _read(cache: Path, key: str) -> Dataset | None:
    """Return what a cache file holds, or None if it is missing, damaged or about other files."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            arrays = {one.name: file[one.name] for one in fields(Dataset)}
            _check(arrays)
            return Dataset(**{**arrays, "unreadable": int(arrays["unreadable"])})
    except FileNotFoundError:
        return None
    except BROKEN_ARRAYS as error:
        what = f"{cache} is damaged ({shown(str(error))}); its votes are made again"
        print(one_line(f"not used: {what}"), flush=True)
        return None


def _check(arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Raise ValueError for arrays of other kinds than those of a `Dataset`."""
    count, side = (*arrays["images"].shape, 0, 0)[:2]
    shapes: dict[str, tuple[int, ...]] = {
        "images": (count, side, side, 3),
        "shares": (count, VOTE_SIDE, VOTE_SIDE),
        "opinions": (count, len(MEMBERS), VOTE_SIDE, VOTE_SIDE),
        "agreement": (count,),
    }
    for name, shape in shapes.items():
        array, kind = arrays[name], np.float32 if name == "agreement" else np.uint8
        if array.shape != shape or array.dtype != kind:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
