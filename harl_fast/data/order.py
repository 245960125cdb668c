"""Which samples make up which global step, for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from harl_fast.errors import ConfigError, nearest
from harl_fast.rng import order_generator, permutation

Kind = Literal["random", "quasi"]
CHUNK_BYTES = 8 << 20
"""Bytes of a container that a quasi-random order reads together, as FFCV's pages."""
WINDOW_CHUNKS = 256
"""Chunks that a quasi-random order shuffles together: 2 GiB of page cache."""

Ids = npt.NDArray[np.int64]


def spread(count: int, most: int) -> Ids:
    """Return at most ``most`` ids of ``range(count)`` at even distances, the first and last too."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round()).astype(np.int64)


def chunk_length(*, count: int, total_bytes: int) -> int:
    """Return how many of ``count`` samples in ``total_bytes`` make up `CHUNK_BYTES`; at least 1."""
    return max(1, CHUNK_BYTES * count // max(1, total_bytes))


def quasi_permutation(seed: int, epoch: int, count: int, *, chunk: int, window: int) -> Ids:
    """Return a permutation of ``range(count)`` that stays in few places for a while.

    The ids are cut into chunks of ``chunk`` consecutive ones, the chunks are permuted, and the ids
    of each run of ``window`` chunks are shuffled together (FFCV's QUASI_RANDOM). So any stretch
    inside a window reads from ``window`` chunks, and the next window reads from others.
    """
    generator = order_generator(seed, epoch)
    chunks = generator.permutation(-(-count // chunk))
    parts = [np.empty(0, np.int64)]
    for first in range(0, len(chunks), window):
        ids = (chunks[first : first + window, None] * chunk + np.arange(chunk)).reshape(-1)
        parts.append(generator.permutation(ids[ids < count]))
    return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class GlobalOrder:
    """Each epoch is one permutation of the data set, cut into global batches, then into ranks.

    The set of samples in global step k of an epoch is a function of (seed, epoch, k, batch_global,
    and kind with its chunk and window) alone. The tail that does not fill a global batch is left
    out; each epoch's permutation leaves out another one. Raises ConfigError for what cannot be.
    """

    count: int
    """Samples in the data set."""
    batch_global: int
    """Samples of one optimizer step over all ranks."""
    batch_micro: int
    """Samples of one forward pass on one rank."""
    rank: int = 0
    world: int = 1
    seed: int = 0
    kind: Kind = "random"
    """random: any sample may follow any other. quasi: see `quasi_permutation`; for containers
    larger than the main memory."""
    chunk: int = 1
    """Under quasi: consecutive samples that are read together, see `chunk_length`."""
    window: int = WINDOW_CHUNKS
    """Under quasi: chunks that are shuffled together."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"order '{self.kind}' is none of {', '.join(get_args(Kind))}"
                f"{nearest(self.kind, get_args(Kind))}"
            )
        if min(self.batch_global, self.batch_micro, self.chunk, self.window) < 1:
            raise ConfigError(
                f"global batch {self.batch_global}, micro batch {self.batch_micro}, chunk "
                f"{self.chunk} and window {self.window} must all be 1 or more"
            )
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} of {self.world} ranks does not exist")
        self._check_count()
        per_rank, rest = divmod(self.batch_global, self.world)
        if rest or per_rank % self.batch_micro:
            raise ConfigError(
                f"global batch {self.batch_global} is not micro batch {self.batch_micro} x "
                f"a whole number of accumulation steps x {self.world} ranks"
            )

    def _check_count(self) -> None:
        if self.count < 1:
            raise ConfigError("the data set is empty: convert some images with `make beton`")
        if self.count < self.world:
            raise ConfigError(
                f"the data set has {self.count} samples for {self.world} ranks: start fewer ranks "
                f"or convert more images"
            )
        if self.count < self.batch_global:
            raise ConfigError(
                f"the data set has {self.count} samples, fewer than one global batch of "
                f"{self.batch_global}: lower train_batch_size or convert more images"
            )

    @property
    def steps(self) -> int:
        """Global steps of one epoch."""
        return self.count // self.batch_global

    def rank_samples(self, epoch: int, *, first_step: int = 0) -> Ids:
        """Return this rank's sample ids from a global step of an epoch to the epoch's end.

        Consecutive runs of ``batch_micro`` ids are its micro batches.
        """
        order = self._permutation(epoch)[: self.steps * self.batch_global]
        by_rank = order.reshape(self.steps, self.world, self.batch_global // self.world)
        return np.ascontiguousarray(by_rank[first_step:, self.rank].reshape(-1))

    def _permutation(self, epoch: int) -> Ids:
        if self.kind == "random":
            return permutation(self.seed, epoch, self.count)
        return quasi_permutation(self.seed, epoch, self.count, chunk=self.chunk, window=self.window)
