"""torch's random numbers, drawn without a trace in the caller's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_LOCK = threading.RLock()


@contextlib.contextmanager
def own_numbers(seed: int | None = None) -> Iterator[None]:
    """Draw from torch's generator on the CPU, from ``seed`` on, and leave it as it was.

    All threads of the process share it: one at a time is in here.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
