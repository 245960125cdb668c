"""Which slices of an optimizer's tensors belong to which parameter, and the parameters' norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 16
"""Elements whose squares are added in float32. On CPU torch's norm of 8.4 million elements in one
go is wrong by 2e-4; in pieces of this size, added in float64, by 2e-7 (1.5 ms instead of 1)."""


@dataclass(frozen=True)
class Segment:
    """One parameter's slice of a flat shard."""

    start: int
    numel: int
    param_index: int
    """Position of the parameter in its group, counted over all ranks' parameters."""


@dataclass(frozen=True)
class GroupLayout:
    """How one parameter group lies in this rank's flat shard."""

    segments: Sequence[Segment]
    """In order and adjacent, from the shard's start; what follows them is padding."""
    n_params: int
    """Parameters of the whole group, on this rank or not."""
    process_group: Any | None = None  # torch gives its process groups no public type
    """The ranks that hold the other shards; None if this rank holds everything."""


def flat_layout(
    numels: Sequence[int], *, start: int, stop: int, process_group: Any | None = None
) -> GroupLayout:
    """Return the layout of elements [start, stop) of a group's concatenated parameters.

    numels: element counts of the group's parameters in order. ``stop`` may lie past their end
    (padding), and a range may hold no parameter at all.
    """
    segments, first = [], 0
    for index, numel in enumerate(numels):
        low, high = max(first, start), min(first + numel, stop)
        if low < high:
            segments.append(Segment(start=low - start, numel=high - low, param_index=index))
        first += numel
    return GroupLayout(segments, n_params=len(numels), process_group=process_group)


@dataclass(frozen=True)
class GroupPlan:
    """What a step needs to know of one group's tensors, worked out once."""

    sizes: list[int] | None
    """Lengths of the shard's segments, then of its padding; None: each tensor is one segment."""
    owners: Tensor
    """(segments,) int64: each segment's parameter."""
    membership: Tensor
    """(pieces, n_params) float64: 1 where a piece of a segment belongs to a parameter."""
    process_group: Any | None  # as in GroupLayout

    @property
    def n_params(self) -> int:
        """Parameters of the whole group, over all ranks."""
        return self.membership.shape[1]

    def segments(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return views of the segments of the group's tensors, or of tensors shaped like them."""
        return tensors if self.sizes is None else list(tensors[0].split(self.sizes))[:-1]

    def squares(self, tensors: list[Tensor]) -> Tensor:
        """Return each parameter's sum of squares within these tensors, (n_params,) float64."""
        parts = [piece for segment in self.segments(tensors) for piece in pieces(segment)]
        if not parts:
            return self.membership.new_zeros(self.n_params)
        norms = torch.stack(torch._foreach_norm(parts)).double()
        # A product with a 0-1 matrix adds in a fixed order; index_add_ on CUDA does not.
        return norms.square() @ self.membership


def plan_of_tensors(tensors: list[Tensor]) -> GroupPlan:
    """Return the plan of a group that holds whole parameters."""
    return _plan(tensors, range(len(tensors)), len(tensors), device=tensors[0].device)


def plan_of_shard(shard: Tensor, layout: GroupLayout) -> GroupPlan:
    """Return the plan of a group that holds one flat shard; ValueError if the layout is not its."""
    end = 0
    for segment in layout.segments:
        if segment.start != end or not 0 <= segment.param_index < layout.n_params:
            raise ValueError(
                f"{segment} is misplaced: the one before ends at {end}, and the group has "
                f"{layout.n_params} parameters"
            )
        end += segment.numel
    if shard.ndim != 1 or end > shard.numel():
        raise ValueError(f"segments of {end} elements in a shard of shape {tuple(shard.shape)}")
    sizes = [*(segment.numel for segment in layout.segments), shard.numel() - end]
    owners = [segment.param_index for segment in layout.segments]
    segments = list(shard.split(sizes))[:-1]
    plan = _plan(segments, owners, layout.n_params, device=shard.device)
    return GroupPlan(sizes, plan.owners, plan.membership, layout.process_group)


def _plan(
    segments: Sequence[Tensor], owners: Sequence[int], n_params: int, *, device: torch.device
) -> GroupPlan:
    owner = torch.tensor(owners, dtype=torch.int64)
    counts = torch.tensor([len(pieces(segment)) for segment in segments], dtype=torch.int64)
    membership = torch.nn.functional.one_hot(owner.repeat_interleave(counts), n_params).double()
    return GroupPlan(None, owner.to(device), membership.to(device), None)


def pieces(segment: Tensor) -> Sequence[Tensor]:
    """Return a tensor as views of about `_PIECE` elements, cut along the first dimension."""
    segment = torch.atleast_1d(segment)
    rows = max(1, _PIECE * len(segment) // max(segment.numel(), 1))
    parts: Sequence[Tensor] = segment.split(rows)
    return parts
