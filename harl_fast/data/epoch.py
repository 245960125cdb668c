"""One pass over an FFCV loader that cannot hang, leak its thread, or hand out a damaged sample."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.base import MemoryContext
from ffcv.reader import Reader

from harl_fast.data.decode import OK

_POLL_S = 1.0


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Undo ffcv's habit of setting torch's thread count for the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MappedFile(MemoryContext):  # type: ignore[misc]  # ffcv is untyped
    """The memory-mapped container with what the decoders read beside it.

    Stands in for FFCV's memory manager and context in one. FFCV's own marks numba's shared uint8
    array type as read-only for the whole process, which breaks every function compiled before, and
    builds Python sets and dictionaries of all samples at start.
    """

    def __init__(self, reader: Reader, control: np.ndarray) -> None:
        table = np.sort(reader.alloc_table, order="ptr")
        self._state = (
            np.memmap(reader.file_name, np.uint8, mode="r"),
            np.ascontiguousarray(table["ptr"]),
            np.ascontiguousarray(table["size"]),
            control,
        )

    @property
    def state(self) -> tuple[np.ndarray, ...]:
        """What `decode.span` takes as storage: file, addresses, sizes, control."""
        return self._state

    def schedule_epoch(self, batches: Any) -> MappedFile:
        """Return the context of a pass, as FFCV's memory managers do."""
        return self

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(self, *failure: object) -> None:
        """Keep the mapping: the next pass uses it again."""


class SampleDamage(Exception):
    """A sample of the current batch cannot be decoded: (sample id, status of `decode`)."""

    def __init__(self, sample: int, status: int) -> None:
        super().__init__(sample, status)
        self.sample, self.status = sample, status


class LoudEpoch(EpochIterator):  # type: ignore[misc]  # ffcv is untyped
    """ffcv's batch thread with its silent failures closed.

    The stock thread dies on any exception while the consumer waits for ever, is never joined, and
    passes on whatever the buffer held when a JPEG is damaged. Here every failure is re-raised in
    the consumer. Items are (sample ids, *outputs).
    """

    def __init__(self, loader: Loader, order: np.ndarray) -> None:
        self.closed: bool
        self.memory_allocations: dict[str, Any]
        self.copied: list[torch.cuda.Event | None] = [None] * (loader.batches_ahead + 2)
        self.slot_out: int | None = None
        super().__init__(loader, order)

    def run(self) -> None:
        """Fill slots until the order ends, the consumer leaves, or something fails."""
        try:
            numba.set_num_threads(self.loader.num_workers)
            for number, samples in enumerate(self.iter_ixes):
                slot = number % len(self.copied)
                event = self.copied[slot]
                if event is not None:
                    event.synchronize()  # the slot's last batch may still be on its way to the GPU
                outputs = self.run_pipeline(number, samples, slot, None)
                _check(samples, outputs)
                if not self._put((slot, (samples, *outputs))):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001  # the consumer must not wait for ever
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> tuple[Any, ...]:
        """Return the next batch; its arrays are valid until the call after this one."""
        if self.slot_out is not None and torch.cuda.is_available():
            event = torch.cuda.Event()
            event.record()
            self.copied[self.slot_out] = event
        item = self._get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        if item is None:
            self.close()
            raise StopIteration
        self.slot_out, batch = item
        return batch  # type: ignore[no-any-return]

    def _get(self) -> Any:
        while True:
            try:
                return self.output_queue.get(timeout=_POLL_S)
            except queue.Empty:
                if not self.is_alive() and self.output_queue.empty():
                    return RuntimeError("the loader's thread ended without a word")

    def close(self) -> None:
        """Stop the thread, wait for it, and give its buffers back."""
        if self.closed:
            return
        self.closed = True
        self.terminate_event.set()
        if self.is_alive():
            self.join()
        self.memory_allocations = {}


def _check(samples: np.ndarray, outputs: tuple[Any, ...]) -> None:
    """Raise SampleDamage for the first sample whose image or mask is not fit for use."""
    (*_, status), cells, _ = outputs
    bad = np.flatnonzero(status[:, 0] != OK)
    if bad.size:
        raise SampleDamage(int(samples[bad[0]]), int(status[bad[0], 0]))
    lost = np.flatnonzero(np.isnan(cells[0][:, 0, 0]))
    if lost.size:
        raise SampleDamage(int(samples[lost[0]]), -1)
