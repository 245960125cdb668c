"""FFCV loaders of views with their mask cells: reproducible training, sequential evaluation."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import Graph
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.reader import Reader
from torch import Tensor

from harl_fast.data.decode import (
    CONTROL_EPOCH,
    CONTROL_SEED,
    STATUS_TEXT,
    MaskCellsDecoder,
    ViewsDecoder,
)
from harl_fast.data.epoch import LoudEpoch, MappedFile, SampleDamage, torch_threads_kept
from harl_fast.data.geometry import ViewGeometry
from harl_fast.data.manifest import Manifest, check_container, read_manifest, sample_name
from harl_fast.data.maskfield import BitMaskField
from harl_fast.data.order import GlobalOrder
from harl_fast.errors import ConfigError, DataError


class Batch(NamedTuple):
    """One micro batch. View and cell tensors are the loader's own buffers: they hold until the
    next batch is asked for."""

    views: tuple[Tensor, ...]
    """One (B, S, S, 3) uint8 RGB tensor a view; S may differ between views."""
    cells: tuple[Tensor, ...]
    """One (B, h, w) float32 tensor a view: each cell's foreground share, in [0, 1]."""
    labels: Tensor
    """(B,) int64."""
    ids: Tensor
    """(B,) int64 sample ids, the rows of the container."""


class _Views(Loader):  # type: ignore[misc]  # ffcv is untyped
    """An FFCV loader over our decoders, whose order and seed are given for each pass.

    Its constructor replaces FFCV's, which has room for neither: it sets up the same parts (reader,
    graph, compiled code) with `MappedFile` as memory and no traversal order.
    """

    def __init__(
        self, path: Path, *, views: Sequence[ViewGeometry], batch: int, workers: int, ahead: int
    ) -> None:
        self.control = np.zeros(2, np.uint64)
        self.batch_size, self.batches_ahead, self.num_workers = batch, ahead, workers
        self.reader = Reader(str(path), {"mask": BitMaskField})
        self.memory_manager = MappedFile(self.reader, self.control)
        specs = {
            "image": PipelineSpec("image", decoder=ViewsDecoder(views)),
            "mask": PipelineSpec("mask", decoder=MaskCellsDecoder(views)),
            "label": PipelineSpec("label", decoder=IntDecoder()),
        }
        with torch_threads_kept():
            Compiler.set_num_threads(workers)
            places = {name: place for place, name in enumerate(self.reader.handlers)}
            self.graph = Graph(specs, self.reader.handlers, places, self.reader.metadata, None)
            self.generate_code()

    def start(self, samples: np.ndarray, *, seed: int, epoch: int) -> LoudEpoch:
        """Start a pass over ``samples``; a pass before it must have been closed."""
        self.control[CONTROL_SEED], self.control[CONTROL_EPOCH] = seed, epoch
        with torch_threads_kept():
            return LoudEpoch(self, samples)


def decoding_threads(workers: int, *, ranks_here: int = 1) -> int:
    """Return how many threads one rank decodes with.

    workers: the wish; 0 divides the cores this process may use among the ranks of this machine.
    numba's own limit (NUMBA_NUM_THREADS) caps the answer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wish = workers or max(1, (cores or 1) // ranks_here)
    return min(wish, int(numba.config.NUMBA_NUM_THREADS))


class _Opened:
    """A checked container and the pass under way over it."""

    def __init__(
        self, path: Path, *, views: Sequence[ViewGeometry], batch: int, workers: int, ahead: int
    ) -> None:
        self.path, self.views = Path(path), tuple(views)
        self.manifest: Manifest = read_manifest(self.path)
        check_container(self.path, self.manifest)
        self._views = _Views(self.path, views=views, batch=batch, workers=workers, ahead=ahead)
        self._pass: LoudEpoch | None = None

    def close(self) -> None:
        """Stop the pass under way and free its buffers."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def set_views(self, views: Sequence[ViewGeometry]) -> float:
        """Cut other views from the next pass on; return the seconds that setting up took."""
        start = time.monotonic()
        self.close()
        old, self.views = self._views, tuple(views)
        self._views = _Views(
            self.path,
            views=views,
            batch=old.batch_size,
            workers=old.num_workers,
            ahead=old.batches_ahead,
        )
        return time.monotonic() - start

    def _batches(self, samples: np.ndarray, *, seed: int, epoch: int) -> Iterator[Batch]:
        self.close()
        current = self._pass = self._views.start(samples, seed=seed, epoch=epoch)
        try:
            for ids, (*views, _), cells, labels in current:
                yield Batch(
                    tuple(torch.from_numpy(view) for view in views),
                    tuple(torch.from_numpy(grid) for grid in cells),
                    torch.from_numpy(labels[:, 0].astype(np.int64)),
                    torch.from_numpy(np.array(ids, dtype=np.int64)),
                )
        except SampleDamage as damage:
            what = STATUS_TEXT.get(damage.status, "its mask is missing or has the wrong size")
            raise DataError(
                f"{self.path}: sample {damage.sample} ({sample_name(self.path, damage.sample)}): "
                f"{what}. The container is damaged: write it again with `make beton`."
            ) from damage
        finally:
            current.close()


class BetonLoader(_Opened):
    """The training loader: two or more views a sample, in an order that no rank count changes."""

    def __init__(
        self,
        path: Path,
        *,
        views: Sequence[ViewGeometry],
        batch_global: int,
        batch_micro: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        workers: int = 0,
        ranks_here: int = 1,
        batches_ahead: int = 3,
    ) -> None:
        super().__init__(
            path,
            views=views,
            batch=batch_micro,
            workers=decoding_threads(workers, ranks_here=ranks_here),
            ahead=batches_ahead,
        )
        self.order = GlobalOrder(
            count=self.manifest.count,
            batch_global=batch_global,
            batch_micro=batch_micro,
            rank=rank,
            world=world,
            seed=seed,
        )
        self.epoch, self.step = 0, 0
        self._micro_steps = batch_global // (batch_micro * world)

    @property
    def steps(self) -> int:
        """Global steps of one epoch."""
        return self.order.steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's micro batches from the current position to the end of the epoch.

        The position moves on with each whole global step that was handed out, and to the next
        epoch at the end.
        """
        samples = self.order.rank_samples(self.epoch, first_step=self.step)
        batches = self._batches(samples, seed=self.order.seed, epoch=self.epoch)
        for number, batch in enumerate(batches, start=1):
            yield batch
            if number % self._micro_steps == 0:
                self.step += 1
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch and the global steps of it that are done."""
        return {"seed": self.order.seed, "epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position; nothing that lies before it is decoded.

        Raises ConfigError when the position was made under another seed.
        """
        if int(state["seed"]) != self.order.seed:
            raise ConfigError(
                f"the position was saved under seed {state['seed']}, this run has seed "
                f"{self.order.seed}; set seed: {state['seed']} or start a new run"
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])


class EvalLoader(_Opened):
    """Every sample once, in the container's order, as one central square view."""

    def __init__(
        self,
        path: Path,
        *,
        size_px: int,
        batch: int = 256,
        workers: int = 0,
        centre: float = 0.875,
    ) -> None:
        view = ViewGeometry(size_px=size_px, cells=1, centre=centre)
        super().__init__(
            path, views=[view], batch=batch, workers=decoding_threads(workers), ahead=2
        )

    def __len__(self) -> int:
        """Number of samples."""
        return self.manifest.count

    def __iter__(self) -> Iterator[Batch]:
        """Yield all samples; the last batch may be smaller."""
        return self._batches(np.arange(self.manifest.count, dtype=np.int64), seed=0, epoch=0)
