"""The compiled kernel that decodes a batch, and the memory that its threads work in.

All work lies in module-level functions whose machine code is kept on disk (see `harl_fast.jit`).
Seed and epoch are arguments: a new epoch changes the crops without compiling anything again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
from numba import prange

from harl_fast.data.container.fields import MODE_RAW, PIECE
from harl_fast.data.views.color_cpu import scratch_size
from harl_fast.data.views.crop import ViewGeometry, geometry_table, needs_mask
from harl_fast.data.views.jpeg import close_decoder, excerpt_size, open_decoder, planes_size
from harl_fast.data.views.resize import padded, words_size
from harl_fast.data.views.sample import Scratch, Stored, decode_sample
from harl_fast.jit import njit


@njit(cache=True, parallel=True, nogil=True)
def decode_batch(
    samples, seed, epoch, stored, table, colours, backgrounds, scratch, views, cells, status
):
    """Fill each view's (B, S, S, C), its cells (B, h, w) and the (B,) int32 status.

    samples: (B,) int64 ids. The rest is that of `sample.decode_sample`; ``scratch`` has room for as
    many threads as numba was told to use. A sample whose status is not OK leaves its rows
    undefined.
    """
    threads = scratch.stored.shape[0]
    decoders = np.empty(threads, np.uintp)
    for thread in range(threads):
        decoders[thread] = open_decoder()
    for row in prange(len(samples)):
        thread = numba.get_thread_id()
        decoder = decoders[thread : thread + 1]
        status[row] = decode_sample(
            samples[row],
            row,
            seed,
            epoch,
            stored,
            table,
            colours,
            backgrounds,
            decoder,
            scratch,
            thread,
            views,
            cells,
        )
    for thread in range(threads):
        close_decoder(decoders[thread])


def scratch_for(
    stored: Stored, views: Sequence[ViewGeometry], *, coloured: bool, threads: int
) -> Scratch:
    """Return the memory that threads need for a container's largest samples."""
    # In pieces: all heights of 10 million samples at once would take 80 MB.
    parts = np.array_split(stored.rows, -(-len(stored.rows) // PIECE))
    # Planes are rounded up to whole MCUs: the size that has most of them.
    largest = max(map(_mcus, parts), key=lambda found: found[0])[1:]
    mask_bytes, stored_bytes = stored.mask_size**2 // 8, max(int(p["size"].max()) for p in parts)
    planes = int(planes_size(*largest))
    side = max(view.size_px for view in views)
    step = 3 if any((part["mode"] == MODE_RAW).any() for part in parts) else 1
    longest = max(int(part[name].max()) for part in parts for name in ("height", "width"))
    words = 6 * int(padded(side)) ** 2 + int(words_size(longest, side, step))
    covered = side if any(view.background_p for view in views) else 0
    corners = stored.mask_size + 1 if covered or needs_mask(geometry_table(views)) else 0
    return Scratch(
        stored=np.empty((threads, stored_bytes + mask_bytes), np.uint8),
        planes=np.empty((threads, int(excerpt_size(stored_bytes)) + planes), np.uint8),
        levels=np.empty((threads, 3 * side * side if coloured else 0), np.uint8),
        words=np.empty((threads, words), np.uint16),
        floats=np.empty((threads, scratch_size(side) if coloured else 0), np.float32),
        integral=np.empty((threads, corners, corners), np.int32),
        cover=np.empty((threads, covered * covered), np.float32),
    )


def _mcus(rows: npt.NDArray[np.void]) -> tuple[int, int, int]:
    """Return the most MCUs that one of the images has, and its height and width."""
    counts = ((rows["height"].astype(np.int64) + 15) // 16) * ((rows["width"] + 15) // 16)
    row = rows[int(counts.argmax())]
    return int(counts.max()), int(row["height"]), int(row["width"])
