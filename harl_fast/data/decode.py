"""Decoding one batch: what the compiled kernel is given, and who may run it when."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import numba
import numpy as np
import numpy.typing as npt

from harl_fast.data.buffers import Outputs
from harl_fast.data.container.reader import OpenContainer
from harl_fast.data.views.batch import decode_batch, scratch_for
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry, geometry_table
from harl_fast.data.views.sample import Scratch

_THREAD_SAFE = ("tbb", "omp")
_one_kernel = threading.Lock()
"""Numba's third threading layer, workqueue, ends the process when two threads use it at once."""


class Decoder:
    """Decodes samples of a container into views with their cells, on ``threads`` threads.

    It owns the memory that these work in, allocated at first use: one batch at a time.
    """

    def __init__(
        self,
        container: OpenContainer,
        views: Sequence[ViewGeometry],
        *,
        colour: Colouring | None,
        threads: int,
    ) -> None:
        self._stored, self._views, self._threads = container.stored, tuple(views), threads
        self._geometry = geometry_table(views)
        self._colour = colour
        self._colours = None if colour is None else colour.table()
        self._scratch: Scratch | None = None

    def __call__(
        self, samples: npt.NDArray[np.int64], out: Outputs, *, seed: int, epoch: int
    ) -> None:
        """Fill ``out`` with (B,) samples; rows whose status is not OK are undefined."""
        if self._scratch is None:
            coloured = self._colours is not None
            self._scratch = scratch_for(
                self._stored, self._views, coloured=coloured, threads=self._threads
            )
        numba.set_num_threads(self._threads)  # of this thread
        with _exclusive():
            decode_batch(
                samples,
                np.uint64(seed),
                np.uint64(epoch),
                self._stored,
                self._geometry,
                self._colours,
                self._scratch,
                *out,
            )
        if self._colour is not None:
            self._colour.augment(out.views, samples, seed=seed, epoch=epoch)

    def free(self) -> None:
        """Let the memory go until it is needed again."""
        self._scratch = None


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Hold other loaders' kernels off where numba's threads cannot serve two at once."""
    try:
        alone = numba.threading_layer() not in _THREAD_SAFE
    except ValueError:  # no parallel kernel ran yet, so nobody knows
        alone = True
    with _one_kernel if alone else contextlib.nullcontext():
        yield
