"""FFCV's writer for a stream of samples: it assigns places, where others then write the bytes.

FFCV's own loop waits for ever when one of its workers dies, needs the exact number of samples in
advance, and would make every image be decoded twice: once to see whether it is sound. Here the
layout (header, fields, pages, allocation table) is still FFCV's code; only that loop is ours. Room
is kept for the metadata of every candidate, and the header counts those that came.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from preprocess.convert import Sample, StoredBytes
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


class _Layout(allocator.MemoryAllocator):  # type: ignore[misc]  # ffcv is untyped
    """FFCV's page allocator without its page buffer: it only assigns places."""

    def __init__(self, *arguments: Any) -> None:
        with _plain_memory():
            super().__init__(*arguments)
        self.page_data = np.empty(0, np.uint8)
        self._unwritten = np.empty(self.page_size, np.uint8)  # takes as much as is written to
        self.places: list[int] = []

    def malloc(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Return the place of so many bytes in the file, and where a field may leave them."""
        place, _ = super().malloc(size)
        self.places.append(place)
        return place, self._unwritten[:size]

    def flush_page(self) -> None:
        """Nothing is left to write."""

    def end(self) -> int:
        """Return where the last page ends."""
        return int(self.offset + self.next_page_allocated.value * self.page_size)


class StreamWriter(DatasetWriter):  # type: ignore[misc]  # ffcv is untyped
    """Writes samples as an FFCV container."""

    metadata_sm: _Heap

    def prepare(self) -> None:
        """Write header and fields; the metadata's room is plain memory, so nothing can leak."""
        with _plain_memory():
            super().prepare()

    def begin(self, capacity: int) -> None:
        """Make the file, with room for the metadata of so many samples."""
        self.num_samples, self.count = capacity, 0
        with naming(Path(self.fname)):
            self.prepare()
        self.metadata = np.frombuffer(self.metadata_sm.buf, dtype=self.metadata_type)
        self.table = np.zeros(2 * capacity, dtype=ALLOC_TABLE_TYPE)  # an image and a mask each
        self.layout = _Layout(self.fname, self.data_region_start, self.page_size)

    def place(self, samples: Iterable[Sample]) -> Places:
        """Return the file and where in it the bytes of the next samples are to be written."""
        found, first, names = [], self.count, self.metadata.dtype.names
        for sample in samples:
            packed = np.frombuffer(sample.mask, np.uint8)
            row = (sample, StoredMask(packed, sample.height, sample.width), sample.label)
            self.layout.places = []
            handle_sample(row, self.count, names, self.metadata, self.layout, self.fields)
            found.append(self.layout.places)
            self.count += 1
        if found:
            self.table[2 * first : 2 * self.count] = self.layout.allocations
            self.layout.allocations.clear()  # as tuples they would take 0.4 GB for ImageNet
        return self.fname, found

    def end(self) -> int:
        """Write what lies around the samples, whose bytes are there, and return their number."""
        self.header["num_samples"] = self.count
        with naming(Path(self.fname)):
            if self.count:
                os.truncate(self.fname, self.layout.end())
            self.finalize([self.table[: 2 * self.count]])
        return self.count

    def write(self, samples: Iterable[Sample], *, capacity: int) -> int:
        """Write the samples, at most ``capacity``, in their order and return how many they were.

        An `OSError` of the writing names the container; ``samples`` must name its own files.
        """
        self.begin(capacity)
        for sample in samples:
            write_parts([sample.parts], self.place([sample]))
        return self.end()


Places = tuple[str, list[list[int]]]
"""A container, and the places in it of each sample's parts: of its image, more than one if a page
had no room left for the mask, then of its mask."""


def write_parts(parts: Sequence[StoredBytes], places: Places) -> None:
    """Write samples' bytes to their places in a container; an `OSError` names it."""
    path, of_samples = places
    runs, end = list[tuple[int, list[memoryview]]](), -1
    for (image, mask), own in zip(parts, of_samples, strict=True):
        data = [image.data] * (len(own) - 1) + [memoryview(mask)]
        for place, piece in zip(own, data, strict=True):
            if place != end:
                runs.append((place, []))
            runs[-1][1].append(piece)
            end = place + len(piece)
    with naming(Path(path)):
        file = os.open(path, os.O_WRONLY)
        try:
            for place, pieces in runs:
                # A full disk may cut a write short without an error.
                if os.pwritev(file, pieces, place) != sum(map(len, pieces)):
                    raise OSError(errno.ENOSPC, "a page was written in part", path)
        finally:
            os.close(file)


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
    destination["data_ptr"], _ = malloc(sample.image_bytes)
