"""Loaders of views with their mask cells: reproducible training, sequential evaluation."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import numba
import numpy as np
import torch
from torch import Tensor

from harl_fast.data.buffers import Buffers
from harl_fast.data.container.index import check_container
from harl_fast.data.container.manifest import Manifest, manifest_path
from harl_fast.data.damage import Check, Damage, Policy, warn_unchecked
from harl_fast.data.decode import Decoder
from harl_fast.data.order import (
    VERSIONS,
    ChosenSamples,
    GlobalOrder,
    Kind,
    chunk_length,
    sample_ids,
)
from harl_fast.data.prefetch import PrefetchThread, Samples, check_process
from harl_fast.data.reader import OpenContainer
from harl_fast.data.views.color_device import Colouring
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError, DataError, shown
from harl_fast.host import owned_cores
from harl_fast.jit import require_compiler
from harl_fast.options import check_whole

_log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One micro batch. View and cell tensors are the loader's own buffers: they hold until the
    next batch is asked for."""

    views: tuple[Tensor, ...]
    """Per view a (B, S, S, C) uint8 tensor, RGB or of C = 1 channels the luma; S may differ between
    views. Or, when the loader colours, (B, C, S, S) float32, normalised, in channels-last memory.
    """
    cells: tuple[Tensor, ...]
    """Per view a (B, h, w) float32 tensor: each cell's foreground share, in [0, 1]."""
    labels: Tensor
    """(B,) int64."""
    ids: Tensor
    """(B,) int64 sample ids, the rows of the container."""


def decoding_threads(workers: int, *, ranks_here: int = 1) -> int:
    """Return how many threads one rank decodes with.

    workers: threads asked for; 0 takes this rank's own cores, see `host.owned_cores`. numba's own
    limit (NUMBA_NUM_THREADS) caps the answer. Raises ConfigError for what is no number of threads.
    """
    check_whole(0, workers=workers)
    check_whole(1, ranks_here=ranks_here)
    asked = workers or owned_cores(ranks_here)
    return min(asked, int(numba.config.NUMBA_NUM_THREADS))


class _Reading:
    """What a loader releases: the running pass and the memory. Its finalizer may hold this only."""

    def __init__(self, decoder: Decoder, buffers: Buffers) -> None:
        self.decoder, self.buffers = decoder, buffers
        self.thread: PrefetchThread | None = None

    def stop(self) -> None:
        """Stop the pass under way."""
        if self.thread is not None:
            self.thread.close()
            self.thread = None

    def close(self) -> None:
        """Stop the pass under way and free the memory."""
        self.stop()
        self.buffers.free()
        self.decoder.free()


class _Loader:
    """A checked, open container or set, and passes over given samples of it."""

    def __init__(
        self, path: Path, *, damaged: Policy, check: Check, skip_broken: bool = False
    ) -> None:
        require_compiler()
        for name, choice, known in (("damaged", damaged, Policy), ("check", check, Check)):
            if choice not in get_args(known):
                raise ConfigError(
                    f"{name}: {choice!r}; use {' or '.join(map(repr, get_args(known)))}"
                )
        self.path = Path(path)
        if self.path.is_dir() and not manifest_path(self.path).exists():
            inside = ", ".join(sorted(p.name for p in self.path.glob("*.beton"))) or "none"
            raise DataError(
                f"{self.path} is a folder without a set's manifest beside it; name a container "
                f"(the .beton files in it: {inside})"
            )
        self._container = OpenContainer(
            self.path, sums=check == "checksum", skip_broken=skip_broken
        )
        self.manifest: Manifest = self._container.manifest
        """Of what is open: a set's without the shards that were left out."""
        if self.manifest.count < 1:
            raise DataError(f"{self.path} has no samples; convert images with `make beton`")
        for reason in self._container.index.left_out:
            _log.warning("left out, with all its samples: %s", reason)
        for file, instead in self._container.index.unchecked:
            warn_unchecked(file, instead)
        self.damage = Damage(self._container, policy=damaged)
        self._process = os.getpid()

    def _open(
        self,
        views: Sequence[ViewGeometry],
        *,
        batch: int,
        threads: int,
        ahead: int,
        channels: int,
        colour: Colouring | None = None,
        among: np.ndarray | None = None,
    ) -> None:
        """Prepare passes and check that the buffers will fit; no thread is started."""
        check_whole(1, batches_ahead=ahead)
        several = isinstance(views, Sequence)
        if not (several and views and all(isinstance(view, ViewGeometry) for view in views)):
            raise ConfigError(f"no views: {shown(views)}; give a list of one ViewGeometry or more")
        if colour is not None:
            if not isinstance(colour, Colouring):
                raise ConfigError(f"colour: {shown(colour)}; give a Colouring, or None")
            colour.check(views, channels=channels)
        if channels not in (1, 3):
            raise ConfigError(f"channels: {channels}; views have 3 (RGB) or 1 (luma)")
        buffers = Buffers(
            views, channels=channels, coloured=colour is not None, batch=batch, count=ahead + 1
        )
        reading: dict[str, Any] = {"channels": channels, "colour": colour, "threads": threads}
        decoder = Decoder(self._container, views, **reading, among=among)
        buffers.check_memory(backgrounds=decoder.bank_bytes)
        self._reading = _Reading(decoder, buffers)
        self.views = tuple(views)
        # Runs at garbage collection and at exit, too.
        self._end = weakref.finalize(self, self._reading.close)

    def close(self) -> None:
        """Stop the pass under way and free the buffers; iterating again allocates new ones."""
        if os.getpid() == self._process:
            self._reading.close()

    def copied(self) -> None:
        """Note that all copies of the last batch to a GPU have been asked for.

        Its memory is then filled again once they are made, and not only after whatever else the GPU
        is asked for until the next batch.
        """
        if self._reading.thread is not None:
            self._reading.thread.copied()

    def __reduce__(self) -> NoReturn:
        """Refuse pickling: threads, open file and compiled code cannot travel."""
        raise ConfigError(
            f"a loader of {self.path} cannot be pickled or copied: build it in the process that "
            f"uses it, from its path and settings (that is what a spawned process must be given)"
        )

    def _known(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return (n,) int64 ids; ConfigError or DataError for any other: kernels do not look."""
        return sample_ids(ids, count=self.manifest.count, where=self.path)

    def _batches(self, samples: np.ndarray | Samples, *, seed: int, epoch: int) -> Iterator[Batch]:
        check_process(self._process)
        self._reading.stop()
        thread = PrefetchThread(
            self._container,
            samples,
            decoder=self._reading.decoder,
            buffers=self._reading.buffers,
            damage=self.damage,
            seed=seed,
            epoch=epoch,
        )
        self._reading.thread = thread
        try:
            for ids, outputs in thread:
                views = map(torch.from_numpy, outputs.views)
                yield Batch(
                    tuple(v.permute(0, 3, 1, 2) if v.is_floating_point() else v for v in views),
                    tuple(map(torch.from_numpy, outputs.cells)),
                    torch.from_numpy(self._container.labels[ids].astype(np.int64)),
                    torch.from_numpy(ids),
                )
        finally:
            thread.close()


class BetonLoader(_Loader):
    """The training loader: any number of views per sample, in an order that no rank count changes.

    batches_ahead: batches that are ready or being made while one is consumed. check: whether each
    sample's stored bytes are compared with their checksum. damaged: what is done about a sample
    that differs or cannot be decoded, see `harl_fast.data.damage`; ``damage`` tells how many there
    were. colour: colour and normalise the views in the decoding threads. channels: 3, or 1 for
    views of the luma (BT.601), which pictures of any store have. ids: train on these samples alone.
    Raises ConfigError or DataError before any thread starts.
    """

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
        damaged: Policy = "raise",
        check: Check = "checksum",
        order: Kind = "random",
        colour: Colouring | None = None,
        channels: int = 3,
        skip_broken: bool = False,
        ids: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        super().__init__(path, damaged=damaged, check=check, skip_broken=skip_broken)
        self._chosen = None if ids is None else self._known(ids)
        self.count = self.manifest.count if self._chosen is None else len(self._chosen)
        """Samples of an epoch, before its tail is left out."""
        self.order = GlobalOrder(
            count=self.count,
            batch_global=batch_global,
            batch_micro=batch_micro,
            rank=rank,
            world=world,
            seed=seed,
            kind=order,
            chunk=self._chunk(VERSIONS[-1]),
        )
        self._settings: dict[str, Any] = {
            "batch": batch_micro,
            "threads": decoding_threads(workers, ranks_here=ranks_here),
            "ahead": batches_ahead,
            "channels": channels,
            "among": self._chosen,
        }
        self._open(views, colour=colour, **self._settings)
        self.epoch, self.step = 0, 0
        self._within = False  # batches of the current epoch were handed out
        self._micro_steps = batch_global // (batch_micro * world)

    def _chunk(self, version: int) -> int:
        # Version 1 goes by the file's size, in which a set and one container of its samples differ.
        total = self.manifest.beton_bytes if version == 1 else self._container.data_bytes
        return chunk_length(count=self.manifest.count, total_bytes=total)

    @property
    def steps(self) -> int:
        """Global steps of one epoch."""
        return self.order.steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's micro batches from the current position to the end of the epoch.

        The position moves on with each whole global step that was handed out, and to the next
        epoch at the end.
        """
        places = self.order.rank_samples(self.epoch, first_step=self.step)
        samples = places if self._chosen is None else ChosenSamples(places, self._chosen)
        batches = self._batches(samples, seed=self.order.seed, epoch=self.epoch)
        for number, batch in enumerate(batches, start=1):
            self._within = True
            yield batch
            if number % self._micro_steps == 0:
                self.step += 1
        self.epoch, self.step, self._within = self.epoch + 1, 0, False

    def shown(self, ids: Sequence[int], *, epoch: int = 0) -> Iterator[Batch]:
        """Yield micro batches of given samples as that epoch shows them; the position stays."""
        return self._batches(self._known(ids), seed=self.order.seed, epoch=epoch)

    def set_views(self, views: Sequence[ViewGeometry], *, colour: Colouring | None = None) -> float:
        """Go on with other views (a resolution schedule) and return the seconds it took.

        colour: as in the constructor; the blur follows the size, so it changes with the views.

        Raises ConfigError within an epoch, whose views would otherwise be of two kinds, and when
        the new buffers do not fit into memory; DataError when the path holds another container by
        now. The old views stay in use then.
        """
        check_process(self._process)
        if self._within:
            raise ConfigError(
                f"views cannot change within an epoch: {self.step} of {self.steps} steps of epoch "
                f"{self.epoch} are done; do it between epochs or after load_state_dict"
            )
        start = time.monotonic()
        # The open file goes on, but whoever resumes the run will find what lies there now.
        check_container(self.path, self.manifest)
        end_of_the_old = self._end
        self._open(views, colour=colour, **self._settings)
        end_of_the_old()
        return time.monotonic() - start

    def state_dict(self) -> dict[str, int | str]:
        """Return the position (epoch, and global steps of it that are done) and what it counts in.

        Damaged samples are no part of it: their replacements follow from the container.
        """
        position = {"epoch": self.epoch, "step": self.step}
        return {**position, "order_version": self.order.version, **self._units()}

    def _units(self) -> dict[str, int | str]:
        return {
            "seed": self.order.seed,
            "order": self.order.kind,
            "samples": self.order.count,
            "batch_global": self.order.batch_global,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position; nothing that lies before it is decoded.

        The order of samples is that of the position's version from then on: 1 where it names none.
        Raises ConfigError when the position was made under another seed, order, global batch or
        number of samples, and for what is none; positions without the last three are taken at
        their word.
        """
        if not (isinstance(state, Mapping) and {"seed", "epoch", "step"} <= set(state)):
            raise ConfigError(f"{shown(state)} is no position: give what state_dict() returned")
        check_whole(0, seed=state["seed"], epoch=state["epoch"])
        check_whole(0, self.steps, step=state["step"])
        for name, ours in self._units().items():
            if state.get(name, ours) != ours:
                raise ConfigError(
                    f"the position was saved with {name} {state[name]}, this run has {ours}: its "
                    f"steps hold other samples. Use {state[name]} or start a new run"
                )
        version = state.get("order_version", 1)
        self.order = replace(self.order, version=version, chunk=self._chunk(version))
        self._reading.stop()
        self.epoch, self.step, self._within = int(state["epoch"]), int(state["step"]), False


class EvalLoader(_Loader):
    """Every sample once, in the container's order, as one central square view.

    ids: these samples only, in this order. channels: as for `BetonLoader`. cells: of the mask, by
    side; as many as ``size_px`` tell how much of each pixel it covers.
    """

    def __init__(
        self,
        path: Path,
        *,
        size_px: int,
        batch: int = 256,
        workers: int = 0,
        centre: float = 0.875,
        damaged: Policy = "raise",
        check: Check = "checksum",
        ids: Sequence[int] | np.ndarray | None = None,
        channels: int = 3,
        cells: int = 1,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(path, damaged=damaged, check=check, skip_broken=skip_broken)
        self.ids = self._known(range(self.manifest.count) if ids is None else ids)
        if not len(self.ids):
            raise ConfigError(f"ids: none of the samples of {path}; give one or more")
        if centre == 0.0:  # of a view: cut at random
            raise ConfigError("centre 0: give a share of the shorter side, above 0 and up to 1")
        view = ViewGeometry(size_px=size_px, cells=cells, centre=centre)
        batch = min(batch, len(self.ids))
        threads = decoding_threads(workers)
        self._open([view], batch=batch, threads=threads, ahead=2, channels=channels)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.ids)

    def __iter__(self) -> Iterator[Batch]:
        """Yield all samples; the last batch may be smaller."""
        return self._batches(self.ids, seed=0, epoch=0)
