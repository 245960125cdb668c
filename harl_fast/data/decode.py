"""FFCV decoders: one JPEG decode for all views, and the mask's cells under the same geometry.

Both decoders draw a sample's boxes themselves from (seed, epoch, sample id, view), so they agree
without talking to each other. Seed and epoch arrive with the storage state at run time: a new epoch
changes the crops without compiling anything again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numba
import numpy as np
from ffcv.libffcv import imdecode
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numba import njit

from harl_fast.data.geometry import ViewGeometry, cell_coverage, draw_view, geometry_table
from harl_fast.data.resample import resize_box
from harl_fast.rng import GEOMETRY, stream

OK, NO_DATA, BAD_JPEG = 0, 1, 2
"""Status of a sample: fine; its bytes lie outside the file; libjpeg reported damage."""
STATUS_TEXT = {
    NO_DATA: "its data lie outside the file",
    BAD_JPEG: "its JPEG data are damaged or end early",
}
CONTROL_SEED, CONTROL_EPOCH = 0, 1
"""Places in the control array that ends the storage state."""


@njit(cache=True)
def span(address, storage):  # type: ignore[no-untyped-def]
    """Return the bytes stored at ``address``, or an empty array if the file does not hold them.

    storage: (file bytes (N,) uint8, sorted addresses (A,) uint64, sizes (A,) uint64, control).
    """
    data, addresses, sizes, _ = storage
    place = np.searchsorted(addresses, address)
    if place >= addresses.shape[0] or addresses[place] != address:
        return data[0:0]
    start, length = np.int64(address), np.int64(sizes[place])
    if start < 0 or length < 0 or start + length > data.shape[0]:
        return data[0:0]
    return data[start : start + length]


class _ViewOperation(Operation):  # type: ignore[misc]  # ffcv is untyped
    """A decoder that knows the views' geometry."""

    def __init__(self, views: Sequence[ViewGeometry]) -> None:
        super().__init__()
        self.views = tuple(views)

    def _declare(self, previous: State, queries: list[AllocationQuery]) -> tuple[State, Any]:
        # ffcv's state carries one array; ours is a tuple of arrays that no later operation reads.
        return replace(previous, jit_mode=True, shape=(1,), dtype=np.dtype("u1")), tuple(queries)


class ViewsDecoder(_ViewOperation):
    """Decode each JPEG once and cut every view from it.

    Output: a tuple of (B, S, S, 3) uint8 RGB arrays, one a view, then (B, 1) int32 status.
    A sample whose status is not `OK` leaves its rows undefined; the loader must refuse it.
    """

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask for one output buffer a view and one status a sample."""
        queries = [
            AllocationQuery((view.size_px, view.size_px, 3), np.dtype("u1")) for view in self.views
        ]
        return self._declare(previous_state, [*queries, AllocationQuery((1,), np.dtype("i4"))])

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles into its pipeline."""
        table, count = geometry_table(self.views), len(self.views)
        widths, heights = self.metadata["width"], self.metadata["height"]
        # One picture a thread, not one a batch slot: the buffer holds the set's largest picture.
        scratch_bytes = int((widths.astype(np.int64) * heights).max()) * 3
        threads = Compiler.num_threads
        iterate, decode_jpeg = Compiler.get_iterator(), Compiler.compile(imdecode)

        def decode(batch_indices, memory, metadata, storage):  # type: ignore[no-untyped-def]
            outputs, status = memory[:-1], memory[-1]
            scratch = np.empty((threads, scratch_bytes), np.uint8)
            for slot in iterate(len(batch_indices)):
                sample = batch_indices[slot]
                field = metadata[sample]
                height, width = np.int64(field["height"]), np.int64(field["width"])
                data = span(field["data_ptr"], storage)
                status[slot, 0] = OK
                if data.shape[0] == 0:
                    status[slot, 0] = NO_DATA
                else:
                    pixels = scratch[numba.get_thread_id() % threads]
                    code = decode_jpeg(
                        data, pixels, height, width, height, width, 0, 0, 1, 1, False, False
                    )
                    if code != 0:
                        status[slot, 0] = BAD_JPEG
                    else:
                        image = pixels[: height * width * 3].reshape(height, width, 3)
                        for view in range(count):
                            key = stream(
                                storage[3][CONTROL_SEED],
                                storage[3][CONTROL_EPOCH],
                                sample,
                                view,
                                GEOMETRY,
                            )
                            placed = draw_view(key, height, width, table[view])
                            resize_box(image, placed, outputs[view][slot])
            return memory

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class MaskCellsDecoder(_ViewOperation):
    """Carry each mask through the views' boxes and flips onto the grid of cells.

    Output: a tuple of (B, cells, cells) float32 arrays, one a view: foreground share in [0, 1].
    """

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, Any]:
        """Ask for one output buffer a view."""
        return self._declare(
            previous_state,
            [AllocationQuery((view.cells, view.cells), np.dtype("f4")) for view in self.views],
        )

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles into its pipeline."""
        table, count, size = geometry_table(self.views), len(self.views), int(self.field.size)
        iterate = Compiler.get_iterator()

        def decode(batch_indices, outputs, metadata, storage):  # type: ignore[no-untyped-def]
            for slot in iterate(len(batch_indices)):
                sample = batch_indices[slot]
                field = metadata[sample]
                height, width = np.int64(field["height"]), np.int64(field["width"])
                packed = span(field["data_ptr"], storage)
                for view in range(count):
                    cells = outputs[view][slot]
                    if packed.shape[0] * 8 != size * size:
                        cells[:] = np.nan  # never a plausible mask; the loader refuses it
                    else:
                        key = stream(
                            storage[3][CONTROL_SEED],
                            storage[3][CONTROL_EPOCH],
                            sample,
                            view,
                            GEOMETRY,
                        )
                        placed = draw_view(key, height, width, table[view])
                        cell_coverage(packed, size, height, width, placed, cells)
            return outputs

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
