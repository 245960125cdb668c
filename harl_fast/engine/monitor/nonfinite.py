"""Steps skipped for a loss or gradient that is not finite, and their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harl_fast.collectives import gather_rows


@dataclass(frozen=True)
class _Step:
    number: int
    ids: Tensor
    applied: Tensor
    scale: Tensor


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing, since its loss or gradient was not finite."""

    step: int
    """From 1."""
    ids_by_rank: list[list[int]]
    """Its samples."""


class NonfiniteLog:
    """Buffers each step's sample ids and its on-device applied flag.

    `drain` reads them with one device sync.

    lowest_scale: under fp16 with a dynamic loss scale, its minimum. A step that overflows above
    that is the scale's search for its height and does not count towards `streak`.
    """

    def __init__(self, *, lowest_scale: float | None = None) -> None:
        self._lowest = float("inf") if lowest_scale is None else lowest_scale
        self._steps: list[_Step] = []
        self.streak = 0
        """Counted steps without effect in a row, up to the last `drain`."""
        self.first = 0
        """Number of the streak's first step."""

    def add(
        self, number: int, *, ids: Sequence[Tensor], applied: Tensor, scale: Tensor | None
    ) -> None:
        """Add a step. number: from 1. ids: (B,) int64 of each of this rank's micro batches.

        applied: () bool, equal on all ranks. scale: () float32, the loss scale of the step, which
        must not be changed in place.
        """
        scale = applied.new_zeros((), dtype=torch.float32) if scale is None else scale
        self._steps.append(_Step(number, torch.cat([part.cpu() for part in ids]), applied, scale))

    def drain(self) -> list[SkippedStep]:
        """Return the steps without effect since the last call, equal on all ranks; update `streak`.

        Waits for the device, once. All ranks must call it at the same step.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        applied_all = torch.stack([step.applied for step in steps]).float()
        scales = torch.stack([step.scale for step in steps])
        bad = []
        for step, applied, scale in zip(
            steps, *torch.stack([applied_all, scales]).tolist(), strict=True
        ):
            if applied:
                self.streak = 0
            else:
                bad.append(step)
                if scale <= self._lowest:
                    self.first = self.first if self.streak else step.number
                    self.streak += 1
        return [SkippedStep(step.number, gather_rows(step.ids).tolist()) for step in bad]
