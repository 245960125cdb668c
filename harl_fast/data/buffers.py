"""The output buffers of one loader: allocated once, filled in turn, freed with the loader."""

from __future__ import annotations

import math
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.graph import Graph

from harl_fast.errors import ConfigError
from harl_fast.host import available_bytes


class Slots:
    """``count`` batches of output memory and who holds each: the thread, the consumer, nobody.

    One slot is with the consumer while the others are ready or being filled. Buffers are made at
    first use and stay until `free`, so that further passes take no memory.
    """

    def __init__(self, graph: Graph, *, batch: int, count: int) -> None:
        self.count = count
        self._graph, self._batch = graph, batch
        self._buffers: dict[str, dict[int, Any]] | None = None
        self.copied: list[torch.cuda.Event | None] = [None] * count
        """Recorded when the consumer gave the slot back: its copies to a GPU are done then."""

    @property
    def bytes_needed(self) -> int:
        """Bytes of all slots together."""
        a_sample = sum(_sample_bytes(query) for query in self._queries())
        return self.count * self._batch * a_sample

    def _queries(self) -> Iterator[AllocationQuery]:
        for asked in self._graph.collect_requirements()[0].values():
            for wish in asked.values():
                if isinstance(wish, AllocationQuery):
                    yield wish
                else:
                    yield from wish or ()

    def check_memory(self) -> None:
        """Raise ConfigError if the machine has less free memory than all slots take."""
        need, free = self.bytes_needed, available_bytes()
        if self._buffers is None and free is not None and need > free:
            raise ConfigError(
                f"{self.count} buffers of {self._batch} samples take {need:,} bytes of main memory "
                f"and {free:,} are available: use a smaller micro batch or fewer data.batches_ahead"
            )

    def open_all(self) -> SimpleQueue[int | None]:
        """Return a queue of all slots, free to be filled; allocate them if that was not done."""
        if self._buffers is None:
            self.check_memory()
            self._buffers = self._graph.allocate_memory(self._batch, self.count)
        free: SimpleQueue[int | None] = SimpleQueue()
        for slot in range(self.count):
            free.put(slot)
        return free

    def memory(self, slot: int, first: int, stop: int) -> dict[str, Any]:
        """Return the arguments of FFCV's stage code: rows ``first`` to ``stop`` of a slot."""
        assert self._buffers is not None
        event = self.copied[slot]
        if event is not None:
            event.synchronize()  # the slot's last batch may still be on its way to the GPU
            self.copied[slot] = None
        names = {"operation": "memory", "shared": "shared_memory"}
        return {
            f"{names[kind]}_{node}": _rows(buffer, slot, first, stop)
            for kind, buffers in self._buffers.items()
            for node, buffer in buffers.items()
        }

    def give_back(self, slot: int) -> None:
        """Note that the consumer is done with a slot, but for copies that a GPU still makes."""
        if torch.cuda.is_available():
            event = torch.cuda.Event()
            event.record()
            self.copied[slot] = event

    def free(self) -> None:
        """Let the buffers go; whoever still holds a batch keeps that memory alive."""
        self._buffers = None


def _sample_bytes(query: AllocationQuery) -> int:
    size: int = math.prod(query.shape) * np.dtype(query.dtype).itemsize
    return size


def _rows(buffer: Any, slot: int, first: int, stop: int) -> Any:
    if buffer is None:
        return None
    if isinstance(buffer, tuple):
        return tuple(_rows(part, slot, first, stop) for part in buffer)
    return buffer[slot][first:stop]
