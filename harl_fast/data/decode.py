"""Calls the compiled batch kernel with its inputs and memory, one caller at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from harl_fast.data.buffers import Outputs
from harl_fast.data.order import permuted
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.background import bank_seed, bank_view
from harl_fast.data.views.batch import decode_batch, scratch_for
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry, geometry_table
from harl_fast.data.views.jpeg import OK
from harl_fast.data.views.sample import Scratch
from harl_fast.errors import DataError
from harl_fast.rng import BACKGROUND, stream

FEWEST, MOST, SHARE = 32, 512, 16
"""Pictures in the bank: one of `SHARE` samples within these bounds, since each costs a decode."""
_THREAD_SAFE = ("tbb", "omp")
_one_kernel = threading.Lock()
"""Numba's third threading layer, workqueue, ends the process when two threads use it at once."""


class Decoder:
    """Decodes samples of a container into views with their cells, on ``threads`` threads.

    among: the ids of which backgrounds are taken; None: all. It owns the memory that these work in,
    allocated at first use: one batch at a time.
    """

    def __init__(
        self,
        container: OpenContainer,
        views: Sequence[ViewGeometry],
        *,
        channels: int,
        colour: Colouring | None,
        threads: int,
        among: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._stored, self._views, self._threads = container.stored, tuple(views), threads
        self._geometry, self._channels = geometry_table(views), channels
        self._colour = colour
        self._colours = None if colour is None else colour.table()
        self._scratch: Scratch | None = None
        self._replaces = any(view.background_p for view in views)
        self._among = among
        self._bank: tuple[npt.NDArray[np.uint8], ...] | None = None
        self._bank_of: tuple[int, int] | None = None

    @property
    def bank_bytes(self) -> int:
        """Bytes of an epoch's bank of backgrounds."""
        pixels = sum(view.size_px**2 for view in self._views) * self._channels
        return bank_size(self._choice) * pixels if self._replaces else 0

    @property
    def _choice(self) -> int:
        """Samples of which backgrounds are taken."""
        return len(self._stored.rows) if self._among is None else len(self._among)

    def backgrounds_missing(self, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Return the samples behind an epoch's replaced backgrounds that are not decoded yet."""
        if not self._replaces or self._bank_of == (seed, epoch):
            return np.empty(0, np.int64)
        places = bank_samples(self._choice, seed=seed, epoch=epoch)
        return places if self._among is None else self._among[places]

    def decode_backgrounds(
        self, samples: npt.NDArray[np.int64], *, seed: int, epoch: int
    ) -> npt.NDArray[np.int32]:
        """Decode what `backgrounds_missing` returned; return each one's status.

        Damaged samples are left out. Raises DataError if all are.
        """
        views = [bank_view(view) for view in self._views]
        count, status = len(samples), np.empty(len(samples), np.int32)
        pictures = tuple(
            np.empty((count, v.size_px, v.size_px, self._channels), np.uint8) for v in views
        )
        cells = tuple(np.empty((count, 1, 1), np.float32) for _ in views)
        self._run(
            samples,
            Outputs(pictures, cells, status),
            seed=bank_seed(seed, epoch=epoch),
            epoch=epoch,
            table=geometry_table(views),
        )
        sound = status == OK
        if not sound.any():
            raise DataError(
                f"none of {count} samples can be decoded for backgrounds, the first of them "
                f"{samples[0]}: check the container with `python -m preprocess.verify`"
            )
        self._bank = pictures if sound.all() else tuple(bank[sound] for bank in pictures)
        self._bank_of = seed, epoch
        return status

    def __call__(
        self, samples: npt.NDArray[np.int64], out: Outputs, *, seed: int, epoch: int
    ) -> None:
        """Fill ``out`` with (B,) samples; rows whose status is not OK are undefined.

        Where backgrounds are replaced, `decode_backgrounds` must have been called for the epoch.
        """
        self._run(
            samples,
            out,
            seed=seed,
            epoch=epoch,
            table=self._geometry,
            colours=self._colours,
            backgrounds=self._bank,
        )
        if self._colour is not None:
            self._colour.augment(out.views, samples, seed=seed, epoch=epoch)

    def _run(
        self,
        samples: npt.NDArray[np.int64],
        out: Outputs,
        *,
        seed: int,
        epoch: int,
        table: npt.NDArray[Any],
        colours: npt.NDArray[Any] | None = None,
        backgrounds: tuple[npt.NDArray[np.uint8], ...] | None = None,
    ) -> None:
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
                table,
                colours,
                backgrounds,
                self._scratch,
                *out,
            )

    def free(self) -> None:
        """Let the memory go until it is needed again."""
        self._scratch = self._bank = self._bank_of = None


def bank_samples(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return which of ``count`` samples an epoch's bank shows, by their places."""
    key = stream(seed, epoch, 0, 0, BACKGROUND)
    return permuted(key, count, np.arange(bank_size(count)))


def bank_size(count: int) -> int:
    """Return the number of pictures in the bank of ``count`` samples."""
    return min(count, max(FEWEST, min(MOST, count // SHARE)))


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Hold other loaders' kernels off where numba's threads cannot serve two at once."""
    try:
        alone = numba.threading_layer() not in _THREAD_SAFE
    except ValueError:  # no parallel kernel ran yet, so nobody knows
        alone = True
    with _one_kernel if alone else contextlib.nullcontext():
        yield
