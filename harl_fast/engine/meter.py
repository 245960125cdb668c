"""Figures of the steps since the last log line, summed up on the device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from harl_fast.engine.ds import average_over_ranks

Item = TypeVar("Item")


class Meter:
    """Sums 0-d tensors without reading them; `take` reads all of them at once."""

    def __init__(self) -> None:
        self._first = True
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._wait_s, self._start = 0.0, time.monotonic()

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add one step's or micro step's figures, 0-d tensors."""
        for name, value in figures.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, counting the time that passes until each is there.

        What passes before the very first item is start-up, such as compilation, and not counted.
        """
        iterator = iter(items)
        while True:
            start = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._wait_s += time.monotonic() - start
            if self._first:
                self._first = False
                self._reset()
            yield item

    def take(self) -> dict[str, float]:
        """Return each figure's mean over its additions and over ranks, and start again.

        Also "elapsed_s" since the last call and "wait", the share of it spent on waiting for
        items, this rank's. Waits for the device. All ranks must call it with the same names.
        """
        means: dict[str, float] = {}
        if self._sums:
            counts = [self._counts[name] for name in self._sums]
            stacked = torch.stack(list(self._sums.values()))
            stacked = stacked / torch.tensor(counts, dtype=stacked.dtype).to(stacked.device)
            average_over_ranks([stacked])
            means = dict(zip(self._sums, stacked.tolist(), strict=True))
        elapsed = max(time.monotonic() - self._start, 1e-9)
        means |= {"elapsed_s": elapsed, "wait": self._wait_s / elapsed}
        self._reset()
        return means
