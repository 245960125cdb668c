"""Ranks that evaluate together: each works on a part of the samples, rank 0 has all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """One rank's place among them, and how rows in host memory move; alone, nothing does.

    All ranks must call the methods that move rows, in the same order.
    """

    rank: int = 0
    count: int = 1
    group: Any = None  # a torch ProcessGroup over host memory, whose class moves between releases

    def part(self, total: int, *, rank: int | None = None) -> slice:
        """Return which of ``total`` rows are a rank's, this one's by default: about as many each.

        Parts follow each other in the order of ranks.
        """
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.count, total * (rank + 1) // self.count)

    def gather(self, own: Tensor, *, total: int) -> Tensor:
        """Return all ranks' parts of ``total`` rows as one tensor on rank 0, elsewhere no row."""
        if self.count == 1:
            return own
        if self.rank:
            dist.send(own.contiguous(), 0, group=self.group)
            return own[:0]
        whole = own.new_empty(total, *own.shape[1:])
        whole[self.part(total)] = own
        for rank in range(1, self.count):
            dist.recv(whole[self.part(total, rank=rank)], rank, group=self.group)
        return whole

    def scatter(self, whole: Tensor) -> Tensor:
        """Return this rank's part of rank 0's (N, D) rows; of others only the dtype is read."""
        if self.count == 1:
            return whole
        rows, width = self.agree(*whole.shape)
        if self.rank == 0:
            for rank in range(1, self.count):
                dist.send(whole[self.part(rows, rank=rank)].contiguous(), rank, group=self.group)
            return whole[self.part(rows)]
        part = self.part(rows)
        own = whole.new_empty(part.stop - part.start, width)
        dist.recv(own, 0, group=self.group)
        return own

    def broadcast(self, whole: Tensor) -> Tensor:
        """Return rank 0's (N, D) rows on all ranks; of others only the dtype is read."""
        if self.count == 1:
            return whole
        shape = self.agree(*whole.shape)
        found = whole.contiguous() if self.rank == 0 else whole.new_empty(shape)
        dist.broadcast(found, 0, group=self.group)
        return found

    def agree(self, *numbers: int) -> list[int]:
        """Return rank 0's whole numbers on all ranks; all must give as many."""
        if self.count == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(found, 0, group=self.group)
        plain: list[int] = found.tolist()
        return plain


ALONE = Ranks()
