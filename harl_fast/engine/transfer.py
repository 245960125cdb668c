"""Copies of batches from main memory to the device, beside what the device computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Transfer:
    """Moves tensors to a device; on CUDA on a stream of their own.

    A copy there need not wait for the step before, which the device still computes when the host
    asks for the next batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(
        self, tensors: Sequence[Tensor], *, asked: Callable[[], object] = lambda: None
    ) -> list[Tensor]:
        """Return the tensors on the device, for use on the current stream.

        asked: called once all copies are asked for, while their stream is the current one: an event
        recorded there is passed when their sources may be overwritten.
        """
        if self._stream is None:
            moved = [tensor.to(self._device) for tensor in tensors]
            asked()
            return moved
        with torch.cuda.stream(self._stream):
            moved = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
            asked()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in moved:
            # Made on the other stream, its memory would else be free for that one's next copy
            # before this one has used it.
            tensor.record_stream(current)
        return moved
