"""Which samples make up which global step, for any number of ranks.

The place of a sample is computed, not looked up: a keyed permutation (`permuted`) is evaluated at
the positions asked for, so that no array is as long as the data set.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from harl_fast.errors import ConfigError, DataError, nearest, shown
from harl_fast.jit import njit
from harl_fast.options import check_whole
from harl_fast.rng import ORDER, order_generator, permutation, stream, uniforms

Kind = Literal["random", "quasi"]
VERSIONS = (1, 2)
"""1: numpy's permutations, for runs that were begun with them. 2: keyed permutations."""
CHUNK_BYTES = 8 << 20
"""Bytes of a container that a quasi-random order reads together, as FFCV's pages."""
WINDOW_CHUNKS = 256
"""Chunks that a quasi-random order shuffles together: 2 GiB of page cache."""

Ids = npt.NDArray[np.int64]

_ROUNDS = 12
"""Of the Feistel network. In chi-square tests of pairs of positions over 300,000 keys each round
halves the deviation or more; 8 rounds are still seen at 4 to 16 samples, 10 at 8 and 9, 12 hardly
at any; from 17 samples on, 8 pass."""
_WHOLE, _WINDOW, _SLOT = 1, 2, 3
"""Streams of `ORDER` draws, in the place of a view. Version 1 has 0."""
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@njit(cache=True, inline="always")
def _mix(word):
    """Return what `rng._mix` does; the machine code here may depend on this file alone."""
    word = (word ^ (word >> np.uint64(30))) * _MIX1
    word = (word ^ (word >> np.uint64(27))) * _MIX2
    return word ^ (word >> np.uint64(31))


@njit(cache=True)
def _permute(key, count, side, positions):
    keys = np.empty(_ROUNDS, np.uint64)
    for number in range(_ROUNDS):
        keys[number] = _mix(key + np.uint64(number + 1) * _WEYL)
    out = np.empty(positions.shape[0], np.int64)
    for row in range(positions.shape[0]):
        place = np.uint64(positions[row])
        while True:  # at most every other time again, and hardly ever in large sets
            left = place // side
            right = place - left * side
            for number in range(_ROUNDS):
                drawn = ((_mix(right ^ keys[number]) >> np.uint64(32)) * side) >> np.uint64(32)
                left, right = right, left + drawn
                if right >= side:
                    right -= side
            place = left * side + right
            if place < count:
                break
        out[row] = place
    return out


def permuted(key: int, count: int, positions: Ids) -> Ids:
    """Return the elements at some positions of the permutation ``key`` of ``range(count)``.

    key: uint64. count: below 2^62. positions: (n,) int64 in ``range(count)``. A Feistel network
    whose halves are the two digits of a position in the smallest base whose square holds ``count``,
    added modulo the base, permutes ``range(base^2)``; what falls outside ``range(count)`` is sent
    through it again until it does not (cycle walking: Black and Rogaway, Ciphers with arbitrary
    finite domains, CT-RSA 2002). The base is not a power of two, since at 1.3 million samples
    three positions of four would lie outside.
    """
    side = math.isqrt(max(1, count) - 1) + 1
    found: Ids = _permute(np.uint64(key), np.uint64(count), np.uint64(side), positions)
    return found


def spread(count: int, most: int) -> Ids:
    """Return at most ``most`` ids of ``range(count)`` at even distances, the first and last too."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round()).astype(np.int64)


def chunk_length(*, count: int, total_bytes: int) -> int:
    """Return how many of ``count`` samples in ``total_bytes`` make up `CHUNK_BYTES`; at least 1."""
    return max(1, CHUNK_BYTES * count // max(1, total_bytes))


class _Windows:
    """The quasi-random order of one epoch: called with (n,) positions, it returns the ids there.

    The ids are cut into chunks of ``chunk`` consecutive ones, the chunks are permuted, and the ids
    of each run of ``window`` chunks are shuffled together (FFCV's QUASI_RANDOM). So any stretch
    inside a window reads from ``window`` chunks, and the next window reads from others.
    """

    def __init__(self, order: GlobalOrder, epoch: int) -> None:
        self._seed, self._epoch = order.seed, epoch
        self._chunk, self._window = order.chunk, order.window
        self._chunks = -(-order.count // order.chunk)
        self._missing = self._chunks * order.chunk - order.count
        """Of the last chunk, to be as long as the others."""
        # That chunk is in a window drawn at random, where it is counted last: inside a window the
        # order of chunks means nothing.
        draw = uniforms(order.seed, epoch, [0], view=_SLOT, purpose=ORDER, count=1).item()
        self._short_window = int(draw * self._chunks) // order.window
        self._short_position = min((self._short_window + 1) * order.window, self._chunks) - 1
        self._chunks_of = functools.lru_cache(maxsize=2)(self._chunks_in)  # two: a batch's

    def __call__(self, positions: Ids) -> Ids:
        length = self._window * self._chunk
        after = positions >= (self._short_window + 1) * length - self._missing
        windows, places = np.divmod(positions + self._missing * after, length)
        ids = np.empty_like(positions)
        starts = np.flatnonzero(np.diff(windows, prepend=-1)).tolist()
        for start, end in itertools.pairwise([*starts, len(positions)]):
            ids[start:end] = self._of_window(int(windows[start]), places[start:end])
        return ids

    def _of_window(self, window: int, places: Ids) -> Ids:
        chunks = self._chunks_of(window)
        count = len(chunks) * self._chunk - self._missing * (window == self._short_window)
        key = stream(self._seed, self._epoch, window, _WINDOW, ORDER)
        position, within = np.divmod(permuted(key, count, places), self._chunk)
        ids: Ids = chunks[position] * self._chunk + within
        return ids

    def _chunks_in(self, window: int) -> Ids:
        """Return a window's chunks, by a permutation of all the set's chunks but the last one."""
        first = window * self._window
        positions = np.arange(first, min(first + self._window, self._chunks))
        chunks = np.full_like(positions, self._chunks - 1)
        others = positions != self._short_position
        positions = positions[others] - (positions[others] > self._short_position)
        key = stream(self._seed, self._epoch, 0, _WHOLE, ORDER)
        chunks[others] = permuted(key, self._chunks - 1, positions)
        return chunks


def _version_1(order: GlobalOrder, epoch: int) -> Ids:
    """Return the whole epoch in the order of version 1, the one of runs that were begun with it."""
    if order.kind == "random":
        return permutation(order.seed, epoch, order.count)
    generator = order_generator(order.seed, epoch)
    chunks = generator.permutation(-(-order.count // order.chunk))
    parts = []
    for first in range(0, len(chunks), order.window):
        starts = chunks[first : first + order.window, None] * order.chunk
        ids = (starts + np.arange(order.chunk)).reshape(-1)
        parts.append(generator.permutation(ids[ids < order.count]))
    return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class GlobalOrder:
    """Each epoch is one permutation of the data set, cut into global batches, then into ranks.

    The set of samples in global step k of an epoch is a function of (seed, epoch, k, batch_global,
    version, and kind with its chunk and window) alone. The tail that does not fill a global batch
    is left out; each epoch's permutation leaves out another one. Raises ConfigError for what cannot
    be.
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
    """random: any sample may follow any other. quasi: see `_Windows`; for containers larger than
    the main memory."""
    chunk: int = 1
    """Under quasi: consecutive samples that are read together, see `chunk_length`."""
    window: int = WINDOW_CHUNKS
    """Under quasi: chunks that are shuffled together."""
    version: int = VERSIONS[-1]
    """One of `VERSIONS`."""

    def __post_init__(self) -> None:
        check_whole(0, 2**64 - 1, seed=self.seed)
        check_whole(0, rank=self.rank)
        least_1 = ("batch_global", "batch_micro", "world", "chunk", "window")
        check_whole(1, **{name: getattr(self, name) for name in least_1})
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"order '{self.kind}' is none of {', '.join(get_args(Kind))}"
                f"{nearest(self.kind, get_args(Kind))}"
            )
        if self.version not in VERSIONS:
            raise ConfigError(
                f"version {self.version!r:.60} of the sample order is none of "
                f"{', '.join(map(str, VERSIONS))}: continue with the harl_fast that saved it"
            )
        if self.rank >= self.world:
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
                f"the training data have {self.count} samples, fewer than one global batch of "
                f"{self.batch_global}: lower train_batch_size, or give more images or a larger "
                f"subset"
            )

    @property
    def steps(self) -> int:
        """Global steps of one epoch."""
        return self.count // self.batch_global

    def rank_samples(self, epoch: int, *, first_step: int = 0) -> RankSamples:
        """Return this rank's sample ids from a global step of an epoch to the epoch's end.

        Consecutive runs of ``batch_micro`` ids are its micro batches.
        """
        return RankSamples(self, epoch, first_step=first_step)

    def ids_of(self, epoch: int) -> Callable[[Ids], Ids]:
        """Return the epoch's permutation: a function of (n,) positions that returns their ids."""
        if self.version == 1:
            return _version_1(self, epoch).take
        if self.kind == "quasi":
            return _Windows(self, epoch)
        key = stream(self.seed, epoch, 0, _WHOLE, ORDER)
        return functools.partial(permuted, key, self.count)


class RankSamples:
    """One rank's sample ids in the rest of an epoch: a sequence to take slices of, (n,) int64.

    Version 2 computes them when they are asked for.
    """

    def __init__(self, order: GlobalOrder, epoch: int, *, first_step: int) -> None:
        self._order, self._first_step = order, first_step
        self._ids_of = order.ids_of(epoch)
        self._per_step = order.batch_global // order.world

    def __len__(self) -> int:
        return (self._order.steps - self._first_step) * self._per_step

    def __getitem__(self, rows: slice) -> Ids:
        step, row = np.divmod(np.arange(*rows.indices(len(self))), self._per_step)
        first = self._order.rank * self._per_step
        return self._ids_of((self._first_step + step) * self._order.batch_global + first + row)


def sample_ids(ids: npt.ArrayLike, *, count: int, where: Path) -> Ids:
    """Return (n,) chosen ids of ``count`` samples.

    where: what holds them, for messages. Raises ConfigError for what is no list of whole numbers,
    and DataError for one that is no sample's.
    """
    try:
        found = np.asarray(ids)
        told = f"{found.dtype} of shape {found.shape}"
    except ValueError:  # of lists of several lengths
        found, told = np.empty(()), shown(ids)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ConfigError(
            f"ids: {told}; give a list of whole numbers, of a boolean mask numpy.flatnonzero(mask)"
        )
    if len(unknown := found[(found < 0) | (found >= count)]):
        raise DataError(f"{where} has no sample {unknown[0]}: its ids are 0 to {count - 1}")
    return found.astype(np.int64)


class ChosenSamples:
    """A rank's samples by their places among chosen ids, to take slices of."""

    def __init__(self, places: RankSamples, ids: Ids) -> None:
        self._places, self._ids = places, ids

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: slice) -> Ids:
        found: Ids = self._ids[self._places[rows]]
        return found
