"""The checksum of a whole container: its SHA-256, of a large one by pieces.

One core hashes 2 GB/s at best, less than disks read, and all others would wait for it at the end of
each shard. Pieces are hashed side by side; the SHA-256 of their digests stands for the file.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harl_fast.files import Progress, open_regular, sha256_file
from harl_fast.host import usable_cores

PIECE_BYTES = 16 << 20
"""Part of the format."""
_BY_PIECES = ":pieces"
"""Ends the digest of a file of more than one."""
_BLOCK_BYTES = 1 << 18
"""Stays in a core's cache between reading and hashing."""
_THREADS = 16
"""At most: as many keep up with any storage, and one of disks that turn."""


def file_digest(path: Path, *, progress: Progress | None = None, threads: int = _THREADS) -> str:
    """Return what a manifest holds of a container, read by at most so many threads.

    progress: counts the MiB that are read.
    """
    size = path.stat().st_size
    if size <= PIECE_BYTES:
        return sha256_file(path, progress=progress)
    whole = hashlib.sha256()
    count = min(threads, _THREADS, usable_cores())
    with open_regular(path) as stream, ThreadPoolExecutor(count) as pool:
        file = stream.fileno()
        starts = range(0, size, PIECE_BYTES)
        for digest in pool.map(lambda start: _piece_digest(file, start), starts):
            whole.update(digest)
            if progress:
                progress.advance(min(PIECE_BYTES >> 20, progress.total - progress.done))
    return whole.hexdigest() + _BY_PIECES


def _piece_digest(file: int, start: int) -> bytes:
    found, block, at = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES)), start
    while count := os.preadv(file, [block[: start + PIECE_BYTES - at]], at):
        found.update(block[:count])
        at += count
    return found.digest()


def has_digest(path: Path, known: str, *, progress: Progress | None = None) -> bool:
    """Return whether a file is what its manifest says, be it by pieces or, as once, without."""
    digest = file_digest if known.endswith(_BY_PIECES) else sha256_file
    return digest(path, progress=progress) == known
