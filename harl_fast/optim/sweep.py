"""LARS on a CPU in two passes over memory, where a step waits for memory and for nothing else.

Done operation by operation over all tensors, a step moves about 56 bytes per weight. Here one pass
reads weights and gradients for all three norms, and one moves weights and momentum: 28 bytes.
The loops are compiled within a second of the first step, too little to keep their code in files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harl_fast.optim.formula import move, rates
from harl_fast.optim.layout import GroupPlan

Floats = NDArray[np.float32]

_FAST = {"reassoc", "contract", "nsz"}
"""What lets a sum run in vectors. A NaN or an infinity stays one: they decide over the step."""
_BLOCK = 1 << 12
"""Elements whose squares are added in float32, in the lanes of vectors: wrong by about 1e-6."""
_CHUNK = 1 << 19
"""Elements that a thread takes at a time. Sums do not depend on the number of threads."""


@dataclass(frozen=True)
class Sweep:
    """One group's memory in pieces, for both passes of one step; from `sweep_of`."""

    n_params: int
    owners: Tensor
    """(pieces,) int64: each piece's parameter."""
    parts: list[list[Floats]]
    """Slices of weights, gradients and momentum, (n,) float32, of each piece."""

    def squares(self, *, decay: float) -> Tensor:
        """Return each parameter's sums of squares of w, g and d = g + decay w.

        (3, n_params) float64, like three calls of `GroupPlan.squares`.
        """
        sums = np.zeros((len(self.parts), 3))
        work = zip(self.parts, sums, strict=True)
        _share([partial(_add_squares, w, g, decay, row) for (w, g, _), row in work])
        total = torch.zeros(self.n_params, 3, dtype=torch.float64)
        return total.index_add_(0, self.owners, torch.from_numpy(sums)).T

    def move(
        self,
        ratio: Tensor,
        applied: Tensor,
        *,
        lr: float,
        decay: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """Apply `formula.move` in place. ratio: (n_params,) float64.

        applied: () bool; if False, nothing moves.
        """
        if not on_host(applied):
            return
        numbers = (decay, momentum, *rates(lr=lr, momentum=momentum, nesterov=nesterov))
        factors = on_host(ratio[self.owners].float())
        work = zip(self.parts, factors, strict=True)
        _share([partial(_move, *part, each, *map(np.float32, numbers)) for part, each in work])


def sweep_of(
    plan: GroupPlan, weights: list[Tensor], grads: list[Tensor], buffers: list[Tensor]
) -> Sweep | None:
    """Return the passes over a group's tensors, or None where they do not apply.

    They do to float32 in the host's memory, without gaps. All three tensors of a weight have the
    same strides.
    """
    if not all(map(_fits, weights)):
        return None
    numbers, parts = [], []
    tensors = (plan.segments(each) for each in (weights, grads, buffers))
    for number, segment in enumerate(zip(*tensors, strict=True)):
        flat = [on_host(t.as_strided((t.numel(),), (1,))) for t in segment]
        for start in range(0, flat[0].size, _CHUNK):
            numbers.append(number)
            parts.append([elements[start : start + _CHUNK] for elements in flat])
    return Sweep(plan.n_params, plan.owners[numbers], parts)


def _fits(t: Tensor) -> bool:
    gapless = t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)
    return t.device.type == "cpu" and t.dtype == torch.float32 and gapless


@numba.njit(nogil=True, fastmath=_FAST)
def _block_squares(w, g, decay):
    ww, gg, dd = np.float32(0), np.float32(0), np.float32(0)
    for i in range(w.size):
        d = g[i] + decay * w[i]
        ww += w[i] * w[i]
        gg += g[i] * g[i]
        dd += d * d
    return ww, gg, dd


@numba.njit(nogil=True, fastmath=_FAST)
def _add_squares(w, g, decay, sums):
    """Add the sums of squares of w, g and g + decay w, (n,) float32, to the float64 ``sums``."""
    for i in range(0, w.size, _BLOCK):
        ww, gg, dd = _block_squares(w[i : i + _BLOCK], g[i : i + _BLOCK], np.float32(decay))
        sums[0] += ww
        sums[1] += gg
        sums[2] += dd


_moved = numba.njit(nogil=True, fastmath=_FAST)(move)


@numba.njit(nogil=True, fastmath=_FAST)
def _move(w, g, v, ratio, decay, momentum, along, ahead):
    """Apply `formula.move` to each element, all float32."""
    for i in range(w.size):
        w[i], v[i] = _moved(w[i], g[i], v[i], ratio, decay, momentum, along, ahead)


def on_host(values: Tensor) -> NDArray[Any]:
    """Return a tensor that lies in the host's memory as an array of that memory."""
    assert values.device.type == "cpu"
    return values.numpy()


def _share(jobs: Sequence[Callable[[], object]]) -> None:
    """Do all jobs on as many threads as torch uses, the caller's among them."""
    threads = torch.get_num_threads()
    others = [_pool().submit(_do, jobs[start::threads]) for start in range(1, threads)]
    _do(jobs[::threads])
    for other in others:
        other.result()


def _do(jobs: Sequence[Callable[[], object]]) -> None:
    for job in jobs:
        job()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="lars")
