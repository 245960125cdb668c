"""Which samples make up which global step, for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harl_fast.errors import ConfigError
from harl_fast.rng import permutation


@dataclass(frozen=True, kw_only=True)
class GlobalOrder:
    """Each epoch is one permutation of the data set, cut into global batches, then into ranks.

    The set of samples in global step k of an epoch is a function of (seed, epoch, k, batch_global)
    alone. The tail that does not fill a global batch is left out; a new permutation an epoch
    leaves out another one.
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

    def __post_init__(self) -> None:
        per_rank, rest = divmod(self.batch_global, self.world)
        if rest or per_rank % self.batch_micro:
            raise ConfigError(
                f"global batch {self.batch_global} is not micro batch {self.batch_micro} x "
                f"a whole number of accumulation steps x {self.world} ranks"
            )
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} of {self.world} ranks does not exist")
        if self.count < self.batch_global:
            raise ConfigError(
                f"the data set has {self.count} samples, fewer than one global batch of "
                f"{self.batch_global}: lower train_batch_size or convert more images"
            )

    @property
    def steps(self) -> int:
        """Global steps of one epoch."""
        return self.count // self.batch_global

    def rank_samples(self, epoch: int, *, first_step: int = 0) -> npt.NDArray[np.int64]:
        """Return this rank's sample ids from a global step of an epoch to the epoch's end.

        Consecutive runs of ``batch_micro`` ids are its micro batches.
        """
        order = permutation(self.seed, epoch, self.count)[: self.steps * self.batch_global]
        by_rank = order.reshape(self.steps, self.world, self.batch_global // self.world)
        return np.ascontiguousarray(by_rank[first_step:, self.rank].reshape(-1))
