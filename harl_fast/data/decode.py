"""The FFCV operation that cuts all views and mask cells of a batch, and its compiled kernel.

Seed and epoch arrive with the storage state at run time: a new epoch changes the crops without
compiling anything again. All work lies in one module-level function whose machine code is kept on
disk (see `harl_fast.jit`). FFCV would wrap it in a function of its own for each loader: 4 seconds
of optimising at each start, and numba would hand the wrapper's ``fastmath`` down, so that pixels
would depend on who compiled first. Its stages are left uncompiled, one Python call a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from ffcv.fields.basics import IntDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.graph import Graph
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.pipeline.state import State
from ffcv.reader import Reader
from numba import prange

from harl_fast.data.container.checksum import sums_differ
from harl_fast.data.container.fields import MODE_RAW
from harl_fast.data.views.color_cpu import scratch_size
from harl_fast.data.views.crop import ViewGeometry, geometry_table, needs_mask
from harl_fast.data.views.jpeg import (
    BAD_JPEG,
    NO_DATA,
    OK,
    UNSUPPORTED,
    close_decoder,
    excerpt_size,
    open_decoder,
    planes_size,
)
from harl_fast.data.views.resize import padded, words_size
from harl_fast.data.views.sample import PICTURE, cut_cells, cut_view, open_picture, place_sample
from harl_fast.jit import njit

BAD_MASK, BAD_SUM = 4, 5
"""Status of a sample: its mask is missing or of another size; its bytes differ from those written.
The others are `jpegfile`'s."""
STATUS_TEXT = {
    NO_DATA: "its data lie outside the file",
    BAD_JPEG: "its JPEG data are damaged or end early",
    UNSUPPORTED: "its image is of a kind that is not read (see `preprocess.beton --help`, store)",
    BAD_MASK: "its mask is missing or has the wrong size",
    BAD_SUM: "its stored bytes do not match their checksum",
}
CONTROL_SEED, CONTROL_EPOCH = 0, 1
"""Places in the control array of the storage state."""


@njit(cache=True)
def span(address, storage):  # type: ignore[no-untyped-def]
    """Return the bytes stored at ``address``, or an empty array if the file does not hold them.

    storage: (file bytes (N,) uint8, sorted addresses (A,) uint64, sizes (A,) uint64, ...).
    """
    data, addresses, sizes = storage[0], storage[1], storage[2]
    place = np.searchsorted(addresses, address)
    if place >= addresses.shape[0] or addresses[place] != address:
        return data[0:0]
    start, length = np.int64(address), np.int64(sizes[place])
    if start < 0 or length < 0 or start + length > data.shape[0]:
        return data[0:0]
    return data[start : start + length]


@njit(cache=True, parallel=True, nogil=True)
def decode_batch(samples, views, cells, status, metadata, storage, table, colours, mask_size, room):  # type: ignore[no-untyped-def]
    """Fill each view's (B, S, S, 3), its cells (B, h, w) and the (B, 1) int32 status.

    metadata: of the image field. storage: of `epoch.MappedFile`. table: of
    `geometry.geometry_table`. colours: of `colour.policy_table`, or None for uint8 views. room: of
    `scratch_room`. A sample whose status is not OK leaves its rows undefined.
    """
    bytes_ = np.empty((room[0], room[1]), np.uint8)
    levels = np.empty((room[0], room[2]), np.uint8)
    words = np.empty((room[0], room[3]), np.uint16)
    floats = np.empty((room[0], room[4]), np.float32)
    integrals = np.empty((room[0], room[5], room[5]), np.int32)
    decoders = np.empty(room[0], np.uintp)
    for thread in range(room[0]):
        decoders[thread] = open_decoder()
    for slot in prange(len(samples)):
        thread = numba.get_thread_id()
        sample = samples[slot]
        field = metadata[sample]
        size = (np.int64(field["height"]), np.int64(field["width"]))
        data, packed = span(field["data_ptr"], storage), span(storage[4][sample], storage)
        if packed.shape[0] * 8 != mask_size * mask_size:
            status[slot, 0] = BAD_MASK
        elif data.shape[0] == 0:
            status[slot, 0] = NO_DATA
        elif storage[5].shape[0] > 0 and sums_differ(data, packed, storage[5][sample]):
            status[slot, 0] = BAD_SUM
        else:
            boxes, keys = np.empty((len(views), 6), np.int64), np.empty(len(views), np.uint64)
            mask = (packed, mask_size, integrals[thread])
            place_sample(storage[3], sample, size, table, mask, boxes, keys)
            picture, mode = np.empty(PICTURE, np.int64), field["mode"]
            decoder = decoders[thread : thread + 1]
            found = open_picture(decoder, mode, data, size, boxes, bytes_[thread], picture)
            status[slot, 0] = found
            if found == OK:
                scratch = (bytes_[thread], levels[thread], words[thread], floats[thread])
                for view in range(len(views)):
                    row = None if colours is None else colours[view]
                    box, out = boxes[view], views[view][slot]
                    cut_view(mode, data, size, box, picture, scratch, keys[view], row, out)
                    cut_cells(packed, mask_size, size, box, cells[view][slot])
    for thread in range(room[0]):
        close_decoder(decoders[thread])


def scratch_room(
    metadata: npt.NDArray[Any],
    largest_jpeg: int,
    views: Sequence[ViewGeometry],
    *,
    mask_size: int,
    coloured: bool,
    threads: int,
) -> tuple[int, ...]:
    """Return the threads, and how much scratch each needs: bytes, levels, words, floats, integral.

    metadata: of the image field. largest_jpeg: bytes of the largest stored image.
    """
    heights, widths = metadata["height"].astype(np.int64), metadata["width"].astype(np.int64)
    planes = max(int(planes_size(h, w)) for h, w in _largest(heights, widths))
    side = max(view.size_px for view in views)
    step = 3 if (metadata["mode"] == MODE_RAW).any() else 1
    longest = int(max(heights.max(), widths.max()))
    return (
        threads,
        int(excerpt_size(largest_jpeg)) + planes,
        3 * side * side if coloured else 0,
        6 * int(padded(side)) ** 2 + int(words_size(longest, side, step)),
        scratch_size(side) if coloured else 0,
        mask_size + 1 if needs_mask(geometry_table(views)) else 0,
    )


def _largest(
    heights: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Return the size whose planes are largest, rounded up to whole MCUs as they are."""
    areas = ((heights + 15) // 16) * ((widths + 15) // 16)
    place = int(areas.argmax())
    return [(int(heights[place]), int(widths[place]))]


class PlainGraph(Graph):  # type: ignore[misc]  # ffcv is untyped
    """FFCV's graph over a container. Its stages stay uncompiled: they only call our kernels.

    FFCV's own switch for that, `Compiler.set_enabled`, is one of the whole process.
    """

    _numbering = threading.Lock()
    """FFCV numbers the nodes of all graphs by one counter, without a lock."""

    def __init__(self, specs: dict[str, PipelineSpec], reader: Reader) -> None:
        places = {name: place for place, name in enumerate(reader.handlers)}
        with self._numbering:
            super().__init__(specs, reader.handlers, places, reader.metadata, None)

    def codegen_stage(self, stage: Any, number: int, *rest: Any) -> Any:
        """Return a stage's function; FFCV compiles those with an even number."""
        return super().codegen_stage(stage, 2 * number + 1, *rest)


class ViewsDecoder(Operation):  # type: ignore[misc]  # ffcv is untyped
    """Decode each image once and cut every view and its mask cells from it.

    Output: a tuple of one array a view, one of cells a view, then the (B, 1) int32 status. Views
    are (B, S, S, 3) uint8 RGB, or with ``colours`` float32, coloured and normalised; cells are
    (B, h, w) float32 foreground shares in [0, 1].
    """

    def __init__(
        self,
        views: Sequence[ViewGeometry],
        *,
        mask_size: int,
        largest_jpeg: int,
        threads: int,
        colours: npt.NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__()
        self.views, self.mask_size, self.largest_jpeg = tuple(views), mask_size, largest_jpeg
        self.threads, self.colours = threads, colours

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask for the output buffers of all views, cells and the status."""
        pixel = np.dtype("u1" if self.colours is None else "f4")
        queries = (
            *(AllocationQuery((v.size_px, v.size_px, 3), pixel) for v in self.views),
            *(AllocationQuery((v.cells, v.cells), np.dtype("f4")) for v in self.views),
            AllocationQuery((1,), np.dtype("i4")),
        )
        # ffcv's state carries one array; ours is a tuple of arrays that no later operation reads.
        state = replace(previous_state, jit_mode=True, shape=(1,), dtype=np.dtype("u1"))
        return state, queries

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV calls for each batch."""
        table, count, mask_size = geometry_table(self.views), len(self.views), self.mask_size
        colours = self.colours
        room = scratch_room(
            self.metadata,
            self.largest_jpeg,
            self.views,
            mask_size=mask_size,
            coloured=self.colours is not None,
            threads=self.threads,
        )

        def decode(samples, memory, metadata, storage):  # type: ignore[no-untyped-def]
            decode_batch(
                samples,
                memory[:count],
                memory[count:-1],
                memory[-1],
                metadata,
                storage,
                table,
                colours,
                mask_size,
                room,
            )
            return memory

        return decode


class LabelDecoder(IntDecoder):  # type: ignore[misc]  # ffcv is untyped
    """FFCV's decoder of integers, a batch at a time: its own loop is meant to be compiled."""

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV calls for each batch."""

        def decode(samples, memory, metadata, storage):  # type: ignore[no-untyped-def]
            np.copyto(memory[: len(samples), 0], metadata[samples])
            return memory[: len(samples)]

        return decode
