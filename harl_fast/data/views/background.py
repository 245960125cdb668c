"""Background replacement: a view's foreground on another sample's picture, under the stored mask.

Shifting what lies behind an object tells the network that it is no part of it (Ryali, Schwab,
Morcos: Characterizing and improving the robustness of self-supervised learning through background
augmentations, arXiv 2103.12719). The pictures are a bank: crops of some samples, with little
foreground, that are drawn anew each epoch and decoded once, so that a replacement costs no further
decoding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harl_fast.data.views.cells import cell_coverage
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.jit import njit
from harl_fast.rng import BACKGROUND, stream, uniform

LEAST_FOREGROUND = 0.05
"""Share of a view, below which it keeps its background: hardly anything of it would be left."""
_SCALE = (0.1, 0.5)
"""Range of a bank picture's share of its image: such crops often miss what stands before it."""


def bank_seed(seed: int, *, epoch: int) -> int:
    """Return the seed of the bank's crops: not those that its samples' own views have."""
    return int(stream(seed, epoch, 0, 1, BACKGROUND))


def bank_view(view: ViewGeometry) -> ViewGeometry:
    """Return how the bank's pictures behind a view are cut: with little foreground of their own."""
    return replace(view, cells=1, crop="background", scale=_SCALE, background_p=0.0)


@njit(cache=True)
def draw_background(seed, epoch, sample, view, probability, pictures):
    """Return which of a bank's ``pictures`` lies behind a view, or -1: it keeps its own."""
    # Below 2 the numbers of views would meet those of the bank's own draws.
    key = stream(seed, epoch, sample, view + 2, BACKGROUND)
    if uniform(key, 0) >= probability:
        return -1
    return int(uniform(key, 1) * pictures)


@njit(cache=True)
def fill_cover(packed, mask_size, height, width, box, cover):
    """Fill ``cover`` (S, S) float32 with each pixel's foreground share.

    packed, mask_size, height, width, box: see `cells.cell_coverage`. The edge is soft: shares are
    weighted 1 : 2 : 1 with their neighbours down and across.
    """
    cell_coverage(packed, mask_size, height, width, box, cover)
    side = cover.shape[0]
    before, own = np.empty(side, np.float32), np.empty(side, np.float32)
    for y in range(side):
        _soften_along(cover[y], own)
    before[:] = cover[0]
    for y in range(side):
        own[:] = cover[y]
        _soften(before, own, cover[min(y + 1, side - 1)], cover[y])
        before, own = own, before


# What follows are loops over one row, in forms that become vector instructions.


@njit(cache=True)
def _soften_along(row, before):
    last = row.shape[0] - 1
    for x in range(last + 1):
        before[x] = row[x]
    for x in range(1, last):
        beside = before[x - 1] + before[x + 1]
        row[x] = np.float32(0.25) * beside + np.float32(0.5) * before[x]
    for x, inner in ((0, min(1, last)), (last, max(last - 1, 0))):
        beside = before[x] + before[inner]
        row[x] = np.float32(0.25) * beside + np.float32(0.5) * before[x]


@njit(cache=True)
def _soften(before, own, behind, out):
    for x in range(out.shape[0]):
        beside = before[x] + behind[x]
        out[x] = np.float32(0.25) * beside + np.float32(0.5) * own[x]


@njit(cache=True)
def paste(pixels, cover, picture):
    """Lay ``pixels`` (S, S, C) uint8 over ``picture`` (S, S, C) uint8, in place; C is 1 or 3.

    cover: (S, S) float32 in [0, 1]: 1 keeps the pixel; of no rows, all are kept. In 255ths, rounded
    to the nearest.
    """
    side, channels = pixels.shape[1:]
    share, shares = np.empty(side, np.float32), np.empty(side * channels, np.float32)
    over, under = pixels.reshape(side, -1), picture.reshape(side, -1)
    for y in range(cover.shape[0]):
        _round_to_255ths(cover[y], share)
        if channels == 3:
            for x in range(side):
                shares[3 * x] = shares[3 * x + 1] = shares[3 * x + 2] = share[x]
        else:
            shares[:] = share
        _mix(over[y], under[y], shares)


@njit(cache=True)
def paste_planes(planes, cover, picture):
    """Do what `paste` does with ``planes`` (3, S, S)."""
    side = planes.shape[1]
    share, under = np.empty(side, np.float32), np.empty((3, side), np.uint8)
    for y in range(cover.shape[0]):
        _round_to_255ths(cover[y], share)
        row = picture[y].reshape(-1)
        for x in range(side):
            under[0, x], under[1, x], under[2, x] = row[3 * x], row[3 * x + 1], row[3 * x + 2]
        for c in range(3):
            _mix(planes[c, y], under[c], share)


@njit(cache=True)
def _round_to_255ths(cover, share):
    for x in range(share.shape[0]):
        share[x] = np.floor(cover[x] * np.float32(255.0) + np.float32(0.5))


@njit(cache=True)
def _mix(over, under, share):
    """Set ``over`` to (over share + under (255 - share)) / 255, rounded to the nearest.

    The sum is a whole number below 2^16, and the quotient 0.002 or more from where it would be
    rounded elsewhere: float32 is exact.
    """
    for i in range(over.shape[0]):
        rest = np.float32(255.0) - share[i]
        mixed = np.float32(over[i]) * share[i] + np.float32(under[i]) * rest
        over[i] = np.uint8(np.int32((mixed + np.float32(127.5)) * np.float32(1.0 / 255.0)))
