"""Bare libjpeg-turbo: every file decoded in full to RGB, nothing else. The decoders' ceiling.

The JPEGs lie in memory, each thread has one picture buffer that stays in its cache, and there is
no Python in the loop: a kernel over all threads calls TurboJPEG directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import njit, prange, types
from PIL import Image

LIBRARY = "libturbojpeg.so.0"
FAST_DCT = 2048
_RGB = 0

llvmlite.binding.load_library_permanently(LIBRARY)
_decompress = types.ExternalFunction(
    "tjDecompress2",
    types.int32(
        types.intp,
        types.CPointer(types.uint8),
        types.uint64,
        types.CPointer(types.uint8),
        types.int32,
        types.int32,
        types.int32,
        types.int32,
        types.int32,
    ),
)


@njit(parallel=True, nogil=True)
def _decode(order, data, starts, shapes, handles, buffers, flags, failed):
    for place in prange(len(order)):
        index = order[place]
        thread = numba.get_thread_id()
        part = data[starts[index] : starts[index + 1]]
        height, width = shapes[index]
        code = _decompress(
            handles[thread],
            part.ctypes,
            part.size,
            buffers[thread].ctypes,
            width,
            0,
            height,
            _RGB,
            flags,
        )
        if code != 0:
            failed[thread] += 1


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Yield (samples, the last picture of thread 0) for ever, 256 files at a time."""
    files = sorted(Path(settings["images"]).rglob("*.jpg"))
    contents = [file.read_bytes() for file in files]
    sizes = [Image.open(file).size for file in files]
    shapes = np.array([(height, width) for width, height in sizes], np.int32)
    starts = np.cumsum([0, *map(len, contents)]).astype(np.int64)
    data = np.frombuffer(b"".join(contents), np.uint8)
    del contents
    threads = settings["threads"]
    library = ctypes.CDLL(LIBRARY)
    library.tjInitDecompress.restype = ctypes.c_void_p
    known = numba.config.NUMBA_NUM_THREADS
    handles = np.array([library.tjInitDecompress() for _ in range(known)], np.int64)
    buffers = np.zeros((known, int(shapes.prod(axis=1).max()) * 3), np.uint8)
    failed = np.zeros(known, np.int64)
    numba.set_num_threads(threads)
    numba.set_parallel_chunksize(4)  # dynamic: a thread that is done early takes more
    rng = np.random.default_rng(0)
    flags = FAST_DCT if settings.get("fast") else 0
    per_call = min(256, len(files))
    yield 0, None
    while True:
        order = rng.permutation(len(files))
        for start in range(0, len(order) - per_call + 1, per_call):
            part = order[start : start + per_call]
            _decode(part, data, starts, shapes, handles, buffers, flags, failed)
            if failed.any():
                raise RuntimeError(f"libjpeg-turbo refused {int(failed.sum())} files")
            yield len(part), buffers[0]
