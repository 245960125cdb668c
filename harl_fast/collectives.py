"""Communication between ranks: sums, means and rows, over devices or from host to host.

All ranks must call each of these functions, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_host_group: Any = None  # all ranks over gloo; see `use_host_group`


def use_host_group(group: Any) -> None:
    """Take a process group of all ranks over gloo for what moves from host to host."""
    global _host_group
    _host_group = group


def host_group() -> Any:
    """Return the process group of all ranks that moves tensors in host memory."""
    return _host_group


def wait_for_all() -> None:
    """Wait until all ranks have come here."""
    dist.barrier(group=_host_group)


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace float tensors by their mean over ranks, in one reduction; all ranks must call it."""
    if not tensors or dist.get_world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view(tensor.shape))


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; all ranks must call it."""
    return bool(max_over_ranks(int(flag)))


def max_over_ranks(value: int) -> int:
    """Return the largest of the ranks' values; all ranks must call it.

    Over gloo, from host to host: no GPU is waited for.
    """
    if dist.get_world_size() == 1:
        return value
    largest = torch.tensor([value], dtype=torch.int32)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_host_group)
    return int(largest.item())


def broadcast(tensor: Tensor) -> None:
    """Replace a tensor in host memory by rank 0's of its size; all ranks must call it."""
    dist.broadcast(tensor, 0, group=_host_group)


def gather_rows(row: Tensor) -> Tensor:
    """Return the ranks' (N,) tensors in host memory as (ranks, N); all ranks must call it."""
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row, group=_host_group)
    return torch.stack(rows)


def gather_texts(texts: Sequence[str], *, width: int) -> list[list[str]]:
    """Return the first ``width`` letters of every rank's ASCII texts, those of one rank together.

    All ranks must call it with as many.
    """
    if dist.get_world_size() == 1:
        return [[text[:width] for text in texts]]
    own = "".join(text[:width].ljust(width) for text in texts).encode("ascii", "replace")
    rows = gather_rows(torch.tensor(list(own), dtype=torch.uint8)).tolist()
    found = [bytes(row).decode() for row in rows]
    return [[row[at : at + width].rstrip() for at in range(0, len(row), width)] for row in found]


def gather_floats(values: Sequence[float]) -> list[list[float]]:
    """Return every rank's values, from host to host; all ranks must call it with as many."""
    if dist.get_world_size() == 1:
        return [list(values)]
    found: list[list[float]] = gather_rows(torch.tensor(values, dtype=torch.float64)).tolist()
    return found


def gather_in_place(
    output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
) -> dist.Work | None:
    """Do what `torch.distributed.all_gather_into_tensor` does, for tensors in host memory.

    torch's own receives, over gloo, into memory of the whole output's size that is new each time,
    and copies from there: for 66 MB on two ranks three times the work. Here the parts go around a
    ring and into their places. output_tensor: (ranks x N,) of any type, contiguous, which gets the
    ranks' parts in their order; input_tensor: (N,) of the same type, this rank's, which may be its
    place in the output. Raises torch's errors for a rank that is gone, or later than the group's
    time limit.
    """
    if async_op:
        return dist.all_gather_into_tensor(output_tensor, input_tensor, group, async_op=True)
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    parts = output_tensor.chunk(ranks)
    if parts[rank].data_ptr() != input_tensor.data_ptr():
        parts[rank].copy_(input_tensor)
    for hop in range(ranks - 1):
        sent, got = parts[(rank - hop) % ranks], parts[(rank - hop - 1) % ranks]
        both = [
            dist.P2POp(dist.isend, sent, group=group, group_peer=(rank + 1) % ranks),
            dist.P2POp(dist.irecv, got, group=group, group_peer=(rank - 1) % ranks),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()
    return None
