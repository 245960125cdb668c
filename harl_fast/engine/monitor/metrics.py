"""What is measured in and around the steps, kept on the device until a log line asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from harl_fast.collectives import average_over_ranks

Item = TypeVar("Item")

_FOLD = 512
"""Additions of one figure that are kept apart before they become one."""


class Standstill:
    """How long a device has nothing to do while the host waits for something.

    A GPU is asked for work ahead of time, and the host's waiting costs nothing until it is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._asked: torch.cuda.Event | None = None
        self._start = 0.0

    def begin(self) -> None:
        """Mark the end of what was asked of the device; first wait until the last mark is passed.

        So the host is ahead of a GPU by no more than what it asks between two marks.
        """
        if self._on_gpu:
            if self._asked is not None:
                self._asked.synchronize()
            self._asked = torch.cuda.Event(enable_timing=True, blocking=True)
            self._asked.record()
        self._start = time.monotonic()

    def end(self) -> float:
        """Return the seconds since `begin` and since the device was done with what it had."""
        if self._asked is None:
            return time.monotonic() - self._start
        if not self._asked.query():
            return 0.0
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        milliseconds: float = self._asked.elapsed_time(now)
        return milliseconds / 1e3


class Meter:
    """Collects 0-d tensors without touching the device; `take` sums and reads all of them."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._first = True
        self._standstill = Standstill(torch.device(device))
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._counts: dict[str, int] = {}
        self._wait_s, self._start = 0.0, time.monotonic()

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add one step's or micro step's figures, 0-d tensors.

        They are kept as they are, since adding would be a dozen kernels per step: they must not be
        changed in place afterwards.
        """
        for name, value in figures.items():
            values = self._values.setdefault(name, [])
            values.append(value.detach() if value.requires_grad else value)
            self._counts[name] = self._counts.get(name, 0) + 1
            if len(values) == _FOLD:
                values[:] = [_total(values)]

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items, counting how long the device stands still until each is there.

        Between two items the device is waited for until it is done with the item before the last.
        What passes before the very first item is start-up, such as compilation, and not counted.
        """
        iterator = iter(items)
        while True:
            self._standstill.begin()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._wait_s += self._standstill.end()
            if self._first:
                self._first = False
                self._reset()
            yield item

    def exclude(self, seconds: float) -> None:
        """Leave the seconds that just passed beside the training out of the elapsed time."""
        self._start += seconds

    def drain(self) -> dict[str, float]:
        """Return each figure's mean over its additions and over ranks, and start again.

        Also, of this rank, "elapsed_s" since the last call and "wait_s", the part of it in which
        the device stood still, waiting for items. Waits for the device. All ranks must call it with
        the same names.
        """
        means: dict[str, float] = {}
        if self._values:
            totals = torch.stack([_total(values) for values in self._values.values()])
            counts = torch.tensor([self._counts[name] for name in self._values]).double()
            stacked = totals / counts.to(totals.device)
            average_over_ranks([stacked])
            means = dict(zip(self._values, stacked.tolist(), strict=True))
        elapsed = max(time.monotonic() - self._start, 1e-9)
        means |= {"elapsed_s": elapsed, "wait_s": self._wait_s}
        self._reset()
        return means


def _total(values: list[Tensor]) -> Tensor:
    """Return the 0-d float64 sum; the first may be an earlier sum, and of another type."""
    head, *rest = values
    return torch.stack(rest).double().sum() + head.double() if rest else head.double()


class StepNorms:
    """Measures the steps it is armed for, on the tensors that the optimizer holds.

    It hooks into `Optimizer.step`: the weights before are copied when the step begins and the
    activations are gone, so that the copy adds nothing to the peak of memory. Under ZeRO the
    optimizer holds shards and is called once per group: squares are of this rank's shards.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.armed = False
        self._before: list[Tensor] = []
        self._squares: list[Tensor] = []
        optimizer.register_step_pre_hook(self._copy)
        optimizer.register_step_post_hook(self._compare)

    @torch.no_grad()
    def _copy(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.armed:
            self._before = [p.detach().clone() for p in _tensors(optimizer)]

    @torch.no_grad()
    def _compare(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.armed and self._before:
            tensors = _tensors(optimizer)
            weights = _square(tensors)
            torch._foreach_sub_(self._before, tensors)
            self._squares.append(torch.stack([weights, _square(self._before)]))
            self._before = []

    def drain(self) -> dict[str, Tensor]:
        """Return "weight_sq" and "update_sq" of the steps since the last call, 0-d float64.

        The sums of squares over this rank's tensors of the weights after the step and of what it
        changed; empty if no step was measured.
        """
        if not self._squares:
            return {}
        weights, updates = torch.stack(self._squares).sum(0).unbind()
        self._squares = []
        return {"weight_sq": weights, "update_sq": updates}


def _tensors(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
