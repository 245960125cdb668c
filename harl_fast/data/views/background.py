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
def fill_cover(packed, mask_size, height, width, box, cover, line):
    """Fill ``cover`` (S, S) float32 with each pixel's foreground share; return their mean.

    packed, mask_size, height, width, box: see `cells.cell_coverage`. The edge is soft: shares are
    weighted 1 : 2 : 1 with their neighbours down and across. line: (S,) float32 scratch. The mean
    is that before.
    """
    cell_coverage(packed, mask_size, height, width, box, cover)
    side = cover.shape[0]
    mean = cover.sum() / (side * side)
    for row in range(side):
        _soften(cover[row], line)
    for column in range(side):
        _soften(cover[:, column], line)
    return mean


@njit(cache=True)
def _soften(values, line):
    last = values.shape[0] - 1
    for i in range(last + 1):
        line[i] = values[i]
    for i in range(last + 1):
        beside = line[max(i - 1, 0)] + line[min(i + 1, last)]
        values[i] = np.float32(0.25) * beside + np.float32(0.5) * line[i]


@njit(cache=True)
def paste(pixels, cover, picture):
    """Lay ``pixels`` (S, S, C) uint8 over ``picture`` (S, S, C) uint8, in place.

    cover: (S, S) float32 in [0, 1]: 1 keeps the pixel; of no rows, all are kept. In 255ths, rounded
    to the nearest.
    """
    for y in range(cover.shape[0]):
        for x in range(cover.shape[1]):
            share = np.uint32(cover[y, x] * np.float32(255.0) + np.float32(0.5))
            rest = np.uint32(255) - share
            for c in range(pixels.shape[2]):
                mixed = np.uint32(pixels[y, x, c]) * share + np.uint32(picture[y, x, c]) * rest
                pixels[y, x, c] = (mixed + np.uint32(127)) // np.uint32(255)
