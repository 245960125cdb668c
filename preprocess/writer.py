"""FFCV's writer fed by a stream of encoded samples, in one process.

FFCV's own loop waits for ever when one of its workers dies, needs the exact number of samples in
advance, and would make every image be decoded twice: once to see whether it is sound. Here the
layout (header, fields, pages, allocation table) is still FFCV's code; only that loop is ours. Room
is kept for the metadata of every candidate, and the header counts those that came.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffcv.writer
import numpy as np
import numpy.typing as npt
from ffcv import memory_allocator as allocator
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE
from ffcv.writer import DatasetWriter, handle_sample

from harl_fast.data.container.fields import BitMaskField, StoredImageField, StoredMask
from harl_fast.data.container.manifest import FIELDS
from harl_fast.files import naming
from preprocess.convert import Sample
from preprocess.encode import largest_image

LEAST_PAGE = 1 << 23
"""FFCV's default of 8 MiB."""


@dataclass
class _Heap:
    """Metadata in plain memory. FFCV shares it among writer processes through /dev/shm, which is
    too small for ImageNet in many containers and keeps the block when a process is killed."""

    buf: bytearray


class _PlainMemory:
    """Stands in for `multiprocessing.shared_memory`."""

    @staticmethod
    def SharedMemory(*, create: bool, size: int) -> _Heap:  # FFCV's call
        return _Heap(bytearray(size))


class _PlainValue:
    """Stands in for `multiprocessing.Value`."""

    def __init__(self, kind: Any, value: int) -> None:
        self.value = value

    @staticmethod
    def get_lock() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


_exchange = threading.Lock()
"""Of two threads that exchange the names at once, one would put back the other's stand-in."""


@contextlib.contextmanager
def _plain_memory() -> Iterator[None]:
    """Let FFCV take plain memory for a while: /dev/shm may be small, or not writable."""
    places = ((ffcv.writer, "shared_memory", _PlainMemory), (allocator, "Value", _PlainValue))
    with _exchange:
        before = [getattr(module, name) for module, name, _ in places]
        try:
            for module, name, plain in places:
                setattr(module, name, plain)
            yield
        finally:
            for (module, name, _), shared in zip(places, before, strict=True):
                setattr(module, name, shared)


class _Page(np.ndarray[Any, np.dtype[np.uint8]]):
    """FFCV's buffer of a page, without the copy of it that FFCV would write: 8 MB of new memory."""

    def tobytes(self, order: Any = None) -> Any:
        """Return what can be written."""
        return self.data


class StreamWriter(DatasetWriter):  # type: ignore[misc]  # ffcv is untyped
    """Writes samples as an FFCV container."""

    metadata_sm: _Heap

    def prepare(self) -> None:
        """Write header and fields; the metadata's room is plain memory, so nothing can leak."""
        with _plain_memory():
            super().prepare()

    def write(self, samples: Iterable[Sample], *, capacity: int) -> int:
        """Write the samples, at most ``capacity``, in their order and return how many they were.

        An `OSError` of the writing names the container; ``samples`` must name its own files.
        """
        self.num_samples = capacity
        with naming(Path(self.fname)):
            self.prepare()
        metadata = np.frombuffer(self.metadata_sm.buf, dtype=self.metadata_type)
        table = np.zeros(2 * capacity, dtype=ALLOC_TABLE_TYPE)  # an image and a mask each
        with _plain_memory():
            pages = allocator.MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        pages.page_data = pages.page_data.view(_Page)
        names = metadata.dtype.names
        count = 0
        with naming(Path(self.fname)), pages:
            for sample in samples:
                packed = np.frombuffer(sample.mask, np.uint8)
                mask = StoredMask(packed, sample.height, sample.width)
                row = (sample, mask, sample.label)
                handle_sample(row, count, names, metadata, pages, self.fields)
                table[2 * count : 2 * count + 2] = pages.allocations
                pages.allocations.clear()  # as tuples they would take 0.4 GB for ImageNet
                count += 1
        self.header["num_samples"] = count
        with naming(Path(self.fname)):
            self.finalize([table[: 2 * count]])
        # FFCV ignores how much a write wrote; a full disk may cut one short without an error.
        end = pages.offset + pages.next_page_allocated.value * self.page_size
        if count and int(self.header["alloc_table_ptr"]) != end:
            raise OSError(errno.ENOSPC, "a page was written in part", self.fname)
        return count


def container_writer(
    path: Path, *, max_resolution: int, mask_size: int, yuv420: bool = False
) -> StreamWriter:
    """Return a writer of containers with our `FIELDS` to ``path``.

    yuv420: whether samples may be stored that way, which plain FFCV must then refuse.
    """
    image = StoredImageField() if yuv420 else RGBImageField()
    # Not by a subclass: FFCV records a field's exact class, and plain FFCV would not read it.
    image.encode = _store_image
    fields = (image, BitMaskField(mask_size), IntField())
    page = LEAST_PAGE
    while page < largest_image(max_resolution) + mask_size**2 // 8:  # a sample lies in one page
        page *= 2
    return StreamWriter(str(path), dict(zip(FIELDS, fields, strict=True)), page_size=page)


def _store_image(
    destination: npt.NDArray[Any],
    sample: Sample,
    malloc: Callable[[int], tuple[int, npt.NDArray[np.uint8]]],
) -> None:
    """Store a sample's encoded picture; for `encode` of an image field."""
    destination["mode"] = sample.mode
    destination["height"], destination["width"] = sample.height, sample.width
    destination["data_ptr"], storage = malloc(len(sample.image))
    storage[:] = sample.image
