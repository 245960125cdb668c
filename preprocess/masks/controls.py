"""Masks for comparison: a disc, the whole image, another image's mask, flipped cells."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from harl_fast.data.container.fields import resize_mask
from harl_fast.errors import DataError
from harl_fast.rng import MASKS, stream, uniforms
from preprocess.images.arrays import Map, Mask, Pixels
from preprocess.masks.heuristic.binary import centre_prior

CANVAS_PX = 128
"""Side of the frame in which cells are flipped and mask files are made. A method's mask whose side
does not divide it is brought to it, so that a mask is the same by way of a file and without."""


def center_map(rgb: Pixels, *, sigma: Annotated[float, Field(ge=0.01, le=10)] = 0.3) -> Map:
    """Return the (64, 64) `centre_prior`, whatever the image shows."""
    return centre_prior(64, sigma=sigma)


def full_map(rgb: Pixels) -> Map:
    """Return an (8, 8) map of ones."""
    return np.ones((8, 8), np.float32)


def derangement(count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return whose mask each of ``count`` images gets: (count,) int64, no image its own.

    One cycle through all images in an order drawn from the seed.
    """
    if count < 2:
        raise DataError(
            f"mask method shuffled: a split of {count} images has no other image's mask to give; "
            f"take another method"
        )
    key = int(stream(seed, 0, 0, 0, MASKS))
    order = np.random.Generator(np.random.Philox(key)).permutation(count)
    partners = np.empty(count, np.int64)
    partners[order] = np.roll(order, -1)
    return partners


def flip_cells(mask: Mask, *, share: float, grid: int, seed: int, position: int) -> Mask:
    """Return a mask with cells inverted: (128, 128) bool, see `CANVAS_PX`.

    Each of grid x grid cells (edges at the rounded multiples of 128/grid) is inverted with
    probability ``share``, a function of (seed, position, cell).
    """
    count = grid * grid
    draws = uniforms(seed, 0, [position], view=0, purpose=MASKS, count=count)[0]
    edges = np.rint(np.arange(grid + 1) * CANVAS_PX / grid).astype(np.int64)
    sides = np.diff(edges)
    flips = (draws < share).reshape(grid, grid)
    result: Mask = to_canvas(mask) ^ np.repeat(np.repeat(flips, sides, axis=0), sides, axis=1)
    return result


def to_canvas(mask: Mask) -> Mask:
    """Return an (H, W) mask at `CANVAS_PX`: exact if its sides divide that."""
    return resize_mask(mask, size=CANVAS_PX)
