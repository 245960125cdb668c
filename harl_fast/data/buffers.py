"""The output buffers of one loader: allocated once, filled in turn, freed with the loader."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError
from harl_fast.host import available_bytes
from harl_fast.options import check_whole

_log = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """What `decode_batch` fills: one buffer, or some of its rows."""

    views: tuple[npt.NDArray[Any], ...]
    """Per view (B, S, S, C) uint8 or, coloured, float32; RGB or luma."""
    cells: tuple[npt.NDArray[np.float32], ...]
    """Per view (B, h, w) float32 foreground shares in [0, 1]."""
    status: npt.NDArray[np.int32]
    """(B,) int32."""

    def rows(self, first: int, stop: int) -> Outputs:
        """Return these rows of all arrays, in the same memory."""
        views, cells = (tuple(a[first:stop] for a in arrays) for arrays in self[:2])
        return Outputs(views, cells, self.status[first:stop])


class Buffers:
    """``count`` batches of output memory and who holds each: the thread, the consumer, nobody.

    One buffer is with the consumer while the others are ready or being filled. They are made at
    first use and stay until `free`, so that further passes take no memory. Raises ConfigError for
    sizes that are no whole numbers from 1 on.
    """

    def __init__(
        self,
        views: Sequence[ViewGeometry],
        *,
        channels: int,
        coloured: bool,
        batch: int,
        count: int,
    ) -> None:
        check_whole(1, batch=batch)
        for view in views:
            check_whole(1, size_px=view.size_px, cells=view.cells)
        self.count, self.batch = count, batch
        pixel = torch.float32 if coloured else torch.uint8
        self._shapes = [
            *(((view.size_px, view.size_px, channels), pixel) for view in views),
            *(((view.cells, view.cells), torch.float32) for view in views),
            ((), torch.int32),
        ]
        self._made: list[Outputs] = []
        self._copied: list[torch.cuda.Event | None] = [None] * count
        """Recorded behind the consumer's copies of a buffer to a GPU: done when it is passed."""

    @property
    def bytes_needed(self) -> int:
        """Bytes of all buffers together."""
        one = sum(int(np.prod(shape)) * pixel.itemsize for shape, pixel in self._shapes)
        return self.count * self.batch * one

    def check_memory(self, *, backgrounds: int = 0) -> None:
        """Raise ConfigError if the machine has less free memory than all buffers take.

        backgrounds: bytes of pictures that lie behind views, beside them.
        """
        need, free = self.bytes_needed + backgrounds, available_bytes()
        if not self._made and free is not None and need > free:
            bank = f" and {backgrounds:,} bytes of backgrounds" if backgrounds else ""
            raise ConfigError(
                f"{self.count} buffers of {self.batch} samples{bank} take {need:,} bytes of main "
                f"memory and {free:,} are available: use a smaller micro batch or fewer "
                f"data.batches_ahead{', or smaller views' if backgrounds else ''}"
            )

    def open_all(self) -> SimpleQueue[int | None]:
        """Return a queue of all buffers, free to be filled; allocate them if that was not done."""
        if not self._made:
            self.check_memory()
            self._made = [self._allocated() for _ in range(self.count)]
        free: SimpleQueue[int | None] = SimpleQueue()
        for buffer in range(self.count):
            free.put(buffer)
        return free

    def _allocated(self) -> Outputs:
        *arrays, status = (_empty((self.batch, *shape), kind) for shape, kind in self._shapes)
        views = len(arrays) // 2
        return Outputs(tuple(arrays[:views]), tuple(arrays[views:]), status)

    def outputs(self, buffer: int) -> Outputs:
        """Return the arrays of a buffer, once no copy to a GPU reads them any more."""
        event, self._copied[buffer] = self._copied[buffer], None
        if event is not None:
            event.synchronize()
        return self._made[buffer]

    def copied(self, buffer: int) -> None:
        """Note that the consumer has asked the GPU for all its copies of a buffer."""
        if torch.cuda.is_available():
            # One that does not block would keep a core busy for as long as the thread waits.
            event = torch.cuda.Event(blocking=True)
            event.record()
            self._copied[buffer] = event

    def give_back(self, buffer: int) -> None:
        """Note that the consumer is done with a buffer, but for copies that a GPU still makes.

        Unless the consumer named them by `copied`, all that the GPU was given so far is waited for.
        """
        if self._copied[buffer] is None:
            self.copied(buffer)

    def free(self) -> None:
        """Let the buffers go; whoever still holds a batch keeps that memory alive."""
        self._made = []


def _empty(shape: tuple[int, ...], kind: torch.dtype) -> npt.NDArray[Any]:
    """Return memory, page-locked where there is a GPU: copies then overlap with the host's work."""
    if torch.cuda.is_available():
        try:
            return torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        except RuntimeError as error:
            _log.warning("no page-locked buffers (%s): the host waits for copies to the GPU", error)
    return torch.empty(shape, dtype=kind).numpy()
