"""Counter-based random numbers: the only source of randomness in views.

A draw is a pure function of (seed, epoch, sample id, view, purpose, index). Pixels therefore do
not depend on worker, batch, rank count or resumption. Keys and draws are the splitmix64 finalizer
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) over a chain of
the coordinates and over a Weyl sequence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import uint64

from harl_fast.jit import njit

GEOMETRY = 0
"""Purpose of the draws that place a view's crop box and flip."""
PHOTOMETRIC = 1
"""Purpose of the draws that colour a view."""
ORDER = 2
"""Purpose of the draw that seeds an epoch's permutation."""
SYNTHESIS = 3
"""Purpose of the draws that make generated images."""
STORE = 4
"""Purpose of the draws that choose how a container's samples are stored."""
MASKS = 5
"""Purpose of the draws behind the masks of control experiments."""
BACKGROUND = 7
"""Purpose of the draws that replace a view's background."""
RANK = 6
"""Purpose of the draw that seeds torch's own generators, with the rank in place of the sample."""

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53


@njit(uint64(uint64), inline="always", cache=True)
def _mix(word):
    word = (word ^ (word >> np.uint64(30))) * _MIX1
    word = (word ^ (word >> np.uint64(27))) * _MIX2
    return word ^ (word >> np.uint64(31))


@njit(uint64(uint64, uint64, uint64, uint64, uint64), cache=True)
def stream(seed, epoch, sample, view, purpose):
    """Return the uint64 key of one stream; the arguments are whole numbers from 0 to 2^64 - 1.

    Callable from Python and from other compiled functions.
    """
    key = _mix(np.uint64(seed) + _WEYL)
    key = _mix(key ^ (np.uint64(epoch) + _WEYL))
    key = _mix(key ^ (np.uint64(sample) + _WEYL))
    return _mix(key ^ ((np.uint64(view) << np.uint64(32)) + np.uint64(purpose) + _WEYL))


@njit(cache=True)
def uniform(key, index):
    """Return draw ``index`` of the stream ``key``: float64, uniform in [0, 1) on a 2^-53 grid."""
    word = _mix(np.uint64(key) + (np.uint64(index) + np.uint64(1)) * _WEYL)
    return np.float64(word >> np.uint64(11)) * _TO_UNIT


@njit(cache=True)
def _fill(seed, epoch, samples, view, purpose, out):
    for row in range(out.shape[0]):
        key = stream(seed, epoch, samples[row], view, purpose)
        for column in range(out.shape[1]):
            out[row, column] = uniform(key, column)


def uniforms(
    seed: int, epoch: int, samples: npt.ArrayLike, *, view: int, purpose: int, count: int
) -> npt.NDArray[np.float64]:
    """Return the first ``count`` draws of each sample's stream.

    samples: (B,) non-negative sample ids. Returns (B, count) float64 in [0, 1).
    """
    ids = np.ascontiguousarray(samples, dtype=np.int64)
    out = np.empty((ids.shape[0], count), dtype=np.float64)
    _fill(np.uint64(seed), epoch, ids, view, purpose, out)
    return out


def order_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator that shuffles one epoch, a function of (seed, epoch)."""
    return np.random.Generator(np.random.Philox(int(stream(seed, epoch, 0, 0, ORDER))))


def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return one epoch's permutation of ``range(count)``, a function of (seed, epoch, count)."""
    order: npt.NDArray[np.int64] = order_generator(seed, epoch).permutation(count)
    return order
