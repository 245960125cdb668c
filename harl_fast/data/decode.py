"""FFCV decoders: one JPEG decode for all views, and the mask's cells under the same geometry.

Both decoders draw a sample's boxes themselves from (seed, epoch, sample id, view), so they agree
without talking to each other. Seed and epoch arrive with the storage state at run time: a new epoch
changes the crops without compiling anything again. All work lies in module-level functions whose
machine code numba keeps on disk; what FFCV compiles for each loader only calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ffcv._libffcv
import llvmlite.binding
import numba
import numpy as np
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numba import njit, prange, types

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

# Called by symbol name, not through ctypes: a pointer of this process would forbid numba's cache.
llvmlite.binding.load_library_permanently(ffcv._libffcv.__file__)
_imdecode = types.ExternalFunction(
    "imdecode",
    types.int32(
        types.CPointer(types.uint8),
        types.uint64,
        types.uint32,
        types.uint32,
        types.CPointer(types.uint8),
        *(types.uint32,) * 6,
        types.boolean,
        types.boolean,
    ),
)


@njit(cache=True)
def decode_jpeg(data, height, width, pixels):  # type: ignore[no-untyped-def]
    """Decode JPEG bytes into the start of ``pixels``; return 0, or non-zero on any damage.

    data: (N,) uint8. pixels: (at least height * width * 3,) uint8, filled row by row in RGB.
    FFCV's own decoder ignores this code and passes on whatever the buffer held before.
    """
    return _imdecode(
        data.ctypes,
        data.size,
        height,
        width,
        pixels.ctypes,
        height,
        width,
        0,
        0,
        1,
        1,
        False,
        False,
    )


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


@njit(cache=True)
def _place(control, sample, view, height, width, row):  # type: ignore[no-untyped-def]
    key = stream(control[CONTROL_SEED], control[CONTROL_EPOCH], sample, view, GEOMETRY)
    return draw_view(key, height, width, row)


@njit(cache=True, parallel=True, nogil=True)
def decode_views(samples, outputs, status, metadata, storage, table, scratch_shape):  # type: ignore[no-untyped-def]
    """Fill each view's (B, S, S, 3) uint8 output and the (B, 1) int32 status of ``samples``.

    metadata: of FFCV's image field. table: of `geometry.geometry_table`. scratch_shape:
    (threads, bytes of the largest picture); each thread decodes into a buffer of its own.
    """
    scratch = np.empty(scratch_shape, np.uint8)
    for slot in prange(len(samples)):
        sample = samples[slot]
        field = metadata[sample]
        height, width = np.int64(field["height"]), np.int64(field["width"])
        data = span(field["data_ptr"], storage)
        pixels = scratch[numba.get_thread_id()]
        if data.shape[0] == 0:
            status[slot, 0] = NO_DATA
        elif decode_jpeg(data, height, width, pixels) != 0:
            status[slot, 0] = BAD_JPEG
        else:
            status[slot, 0] = OK
            image = pixels[: height * width * 3].reshape(height, width, 3)
            for view in range(len(outputs)):
                placed = _place(storage[3], sample, view, height, width, table[view])
                resize_box(image, placed, outputs[view][slot])


@njit(cache=True, parallel=True, nogil=True)
def decode_cells(samples, outputs, metadata, storage, table, size):  # type: ignore[no-untyped-def]
    """Fill each view's (B, cells, cells) float32 output; NaN where a mask is not of ``size``.

    metadata: of the mask field, which carries the image's height and width too.
    """
    for slot in prange(len(samples)):
        sample = samples[slot]
        field = metadata[sample]
        height, width = np.int64(field["height"]), np.int64(field["width"])
        packed = span(field["data_ptr"], storage)
        for view in range(len(outputs)):
            if packed.shape[0] * 8 != size * size:
                outputs[view][slot, :, :] = np.nan  # no plausible mask: the loader refuses it
            else:
                placed = _place(storage[3], sample, view, height, width, table[view])
                cell_coverage(packed, size, height, width, placed, outputs[view][slot])


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
        table = geometry_table(self.views)
        widths, heights = self.metadata["width"], self.metadata["height"]
        largest = int((widths.astype(np.int64) * heights).max()) * 3
        scratch_shape = (Compiler.num_threads, largest)

        def decode(samples, memory, metadata, storage):  # type: ignore[no-untyped-def]
            decode_views(samples, memory[:-1], memory[-1], metadata, storage, table, scratch_shape)
            return memory

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
        table, size = geometry_table(self.views), int(self.field.size)

        def decode(samples, outputs, metadata, storage):  # type: ignore[no-untyped-def]
            decode_cells(samples, outputs, metadata, storage, table, size)
            return outputs

        return decode
