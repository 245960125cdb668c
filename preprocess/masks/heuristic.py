"""Label-free foreground: several guesses from colour contrast to the border, refined and weighed.

The chain, at 64 x 64 pixels in Lab; each step's file names its source:
1. regions of one colour (`regions`), so that every later step handles at most 250 places;
2. cues of what differs from the picture's border (`cues`), each times a centre prior;
3. each cue gives a guess, refined by colour models and smoothing (`refine`);
4. the guesses are averaged, weighted by how much each looks like one object: agreement of several
   proposals and contrast along the outline in place of labels (as Li et al., "The secrets of
   salient object segmentation", CVPR 2014, rank proposals, but with no trained ranker);
5. the result follows the picture's edges at 128 x 128 pixels (`smooth`).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from numba import njit

from harl_fast.errors import ConfigError
from preprocess.masks.cues import barrier_distance, side_distance
from preprocess.masks.refine import affinities, first_probability, judgement, refined
from preprocess.masks.regions import (
    colour_distances,
    neighbours,
    region_means,
    segment,
    sorted_edges,
)
from preprocess.masks.smooth import follow, guided_lines

Map = npt.NDArray[np.float32]

SIDE, FINE = 64, 128
"""Pixels a side: of the picture that is analysed, of the map."""
SIGMA, MIN_SIZE, ROUNDS = 0.5, 4, 4
"""Defaults of `heuristic_map`."""
SCALE = 10.0
"""Felzenszwalb and Huttenlocher's k, in Lab units times pixels of the 64 x 64 picture."""
CENTRE_SIGMA = 0.33
"""Standard deviation of the centre prior in image sides."""
SIDE_WIDTH, RING = 5, 3
"""Pixels: depth of the sides whose colours are background, of the ring that stays background."""
JUDGE = np.array([2.0, -2.0, -14.0, -12.0, 12.0], np.float32)
"""Weight of each figure of `refine.judgement` in a guess's weight, nats a unit."""
GUIDE_RADIUS, GUIDE_EPSILON = 8, 3.0
"""Of the guided filter: half the window in pixels, variance in square Lab units."""


def heuristic_map(
    rgb: npt.NDArray[np.uint8],
    *,
    sigma: float = SIGMA,
    min_size: int = MIN_SIZE,
    rounds: int = ROUNDS,
) -> Map:
    """Return the foreground probability of (H, W, 3) uint8 pixels: (128, 128) float32 in [0, 1].

    The picture is analysed at 64 x 64. sigma: standard deviation of its Gaussian smoothing in
    those pixels, 0 for none: larger for fewer, rounder regions. min_size: least area of a region
    in those pixels: larger ones swallow small parts. rounds: of refinement; 0 leaves the cues.
    Raises `ConfigError` for a negative one.
    """
    if min(sigma, min_size, rounds) < 0:
        raise ConfigError(
            f"heuristic masks: sigma={sigma}, min_size={min_size} and rounds={rounds} must not be "
            f"negative"
        )
    fine = cv2.resize(rgb, (FINE, FINE), interpolation=cv2.INTER_AREA)
    small = cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if sigma > 0:
        small = cv2.GaussianBlur(small, (0, 0), sigma)
    lab = _lab_units(cv2.cvtColor(small, cv2.COLOR_RGB2Lab))
    labels, blend = _region_map(lab, min_size=min_size, rounds=rounds)
    lines = guided_lines(lab, blend[labels].reshape(SIDE, SIDE), GUIDE_RADIUS, GUIDE_EPSILON)
    result: Map = follow(
        cv2.resize(lines, (FINE, FINE)), _lab_units(cv2.cvtColor(fine, cv2.COLOR_RGB2Lab))
    )
    return result


def _region_map(lab: Map, *, min_size: int, rounds: int) -> tuple[npt.NDArray[np.int32], Map]:
    """Return the (S * S,) regions of (S, S, 3) Lab pixels and their (N,) probability."""
    labels, count = segment(*sorted_edges(lab), SIDE * SIDE, SCALE, min_size)
    barrier = barrier_distance(np.ascontiguousarray(np.moveaxis(lab, 2, 0)))
    layers = np.concatenate([lab, _LAYERS, barrier[..., None]], axis=2)
    means = region_means(layers, labels, count)
    columns = np.ascontiguousarray(means.T)
    prior, square, areas = columns[3], columns[4], columns[8]
    ring, rim = columns[5] * areas, columns[6] * areas
    rows = neighbours(labels, SIDE, count)
    distance = colour_distances(means)
    kernel, pull = affinities(distance, areas, *rows)
    nearest = np.log1p(side_distance(lab, means, SIDE_WIDTH))
    cues = ((nearest - nearest.min(), 1.0), (nearest - nearest.min(), 1.3), (columns[7], 1.0))
    guesses = np.empty((len(cues), count), np.float32)
    for guess, (cue, level) in zip(guesses, cues, strict=True):
        first = first_probability(cue * prior, areas, level)
        guess[:] = refined(first, areas, ring, rim, kernel, rows[0], rows[1], pull, rounds)
    figures = judgement(guesses, areas, rim, square, distance, kernel, *rows)
    weight = figures @ JUDGE
    weight = np.exp(weight - weight.max())
    return labels, (weight / weight.sum()) @ guesses


def centre_prior(side: int, *, sigma: float) -> Map:
    """Return a (side, side) Gaussian about the centre of peak 1; sigma counts in image sides."""
    line = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-(line**2) / (2 * sigma**2))
    return np.outer(bell, bell).astype(np.float32)


@njit("float32[:, :, ::1](uint8[:, :, ::1])", cache=True)
def _lab_units(levels):  # type: ignore[no-untyped-def]
    """Return OpenCV's 8-bit (S, S, 3) Lab in its own units: L 0 to 100, a and b -128 to 127."""
    result = np.empty(levels.shape, np.float32)
    for y in range(levels.shape[0]):
        for x in range(levels.shape[1]):
            result[y, x, 0] = levels[y, x, 0] * np.float32(100 / 255)
            result[y, x, 1] = np.float32(levels[y, x, 1]) - np.float32(128)
            result[y, x, 2] = np.float32(levels[y, x, 2]) - np.float32(128)
    return result


def _layers() -> Map:
    """Return (S, S, 4): centre prior, square distance from the centre, outer ring, border."""
    line = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    ring, rim = np.ones((2, SIDE, SIDE), np.float32)
    ring[RING:-RING, RING:-RING] = 0
    rim[1:-1, 1:-1] = 0
    square = line[:, None] ** 2 + line**2
    return np.stack(
        [centre_prior(SIDE, sigma=CENTRE_SIGMA), square, ring, rim], 2, dtype=np.float32
    )


_LAYERS = _layers()
