"""Asynchronous checkpoint writer: training waits for the copy to host memory only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from harl_fast.engine.checkpoint.format import last_name, prune, write_checkpoint
from harl_fast.errors import CheckpointError, why


class HostCopy:
    """Host memory for one state, allocated once: page-locked where the tensors are on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return contiguous copies, which hold until the next call."""
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                pinned = tensor.is_cuda
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                self._buffers[name] = buffer
            buffer.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return {name: self._buffers[name] for name in tensors}


class Saver:
    """Writes one checkpoint at a time in a thread of its own; for one rank only.

    A write that fails is told loudly and stops nothing: the next save is the next attempt, and
    the checkpoint that ``latest`` names stays whole.
    """

    def __init__(
        self, folder: Path, *, keep_last: int, keep_every_epochs: int, warn: Callable[[str], None]
    ) -> None:
        self._folder, self._warn = folder, warn
        self._keep = {"keep_last": keep_last, "keep_every_epochs": keep_every_epochs}
        self._host = HostCopy()
        self._thread: threading.Thread | None = None
        self._written = True
        self.failures = 0
        """Writes that failed so far."""
        self.blocked_s = 0.0
        """How long the last `save` kept the training waiting."""
        self.took_s = 0.0
        """How long the last save took, its writing included."""

    def save(
        self, tensors: Mapping[str, Tensor], record: dict[str, Any], *, keep_all: bool = False
    ) -> None:
        """Copy a state and start to write it; waits for a write that is still under way.

        record: as for `write_checkpoint`. keep_all: delete no older checkpoint after it.
        """
        start = time.monotonic()
        if self._thread is not None and self._thread.is_alive():
            self._warn("the checkpoint before this one is still being written: training waits")
        self.wait()
        host = self._host.take(tensors)
        self.blocked_s = time.monotonic() - start
        # Not a daemon: a process that ends by an error finishes its checkpoint first.
        self._thread = threading.Thread(
            target=self._write, args=(host, record, keep_all), name="checkpoint"
        )
        self._written = False
        self._thread.start()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the write under way: only then may the folder be another process's."""
        self.wait()

    def wait(self) -> bool:
        """Wait for the write under way; return whether the last state saved is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._written

    def _write(self, tensors: dict[str, Tensor], record: dict[str, Any], keep_all: bool) -> None:
        start = time.monotonic()
        try:
            self._folder.mkdir(exist_ok=True)  # but not the run folder, which may be gone
            write_checkpoint(self._folder, tensors=tensors, record=record)
            self._written = True
            if not keep_all:
                prune(self._folder, **self._keep)
        except (OSError, SafetensorError, CheckpointError) as error:
            self._report(error, step=record["step"])
        self.took_s = self.blocked_s + time.monotonic() - start

    def _report(self, error: Exception, *, step: int) -> None:
        reason = f"{error}. Check that the folder can be written to"
        if isinstance(error, OSError):
            reason = why(error)
        if self._written:
            self._warn(
                f"warning: old checkpoints in {self._folder} cannot be deleted: {reason}. Delete "
                f"some by hand before the disk is full"
            )
            return
        self.failures += 1
        self._warn(
            f"ERROR: CHECKPOINT NOT WRITTEN: step {step} into {self._folder}: {reason}, before the "
            f"run ends. Training goes on and the next save tries again (failures so far: "
            f"{self.failures}; last good checkpoint: {last_name(self._folder)})"
        )
