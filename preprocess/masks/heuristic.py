"""Label-free foreground: several guesses from colour contrast to the border, refined and weighed.

The chain, at 64 x 64 pixels in Lab; each step's file names its source:
1. regions of one colour (`regions`), so that every later step handles at most 250 places;
2. cues of what differs from the picture's border (`cues`), each times a centre prior;
3. each cue gives a guess, refined by colour models and smoothing (`refine`);
4. the guesses are averaged, weighted by how much each looks like one object: agreement of several
   proposals and contrast along the outline in place of labels (as Li et al., "The secrets of
   salient object segmentation", CVPR 2014, rank proposals, but with no trained ranker);
5. the result follows the picture's edges (`smooth`).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.masks.cues import barrier_distance, side_distances
from preprocess.masks.refine import affinities, first_probability, judgement, refined
from preprocess.masks.regions import (
    colour_distances,
    neighbours,
    region_means,
    segment,
    sorted_edges,
)
from preprocess.masks.smooth import guided_filter

Map = npt.NDArray[np.float32]

SIDE = 64
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
GUIDE_RADIUS, GUIDE_EPSILON = 4, np.float32(1e-3)


def heuristic_map(
    rgb: npt.NDArray[np.uint8],
    *,
    sigma: float = SIGMA,
    min_size: int = MIN_SIZE,
    rounds: int = ROUNDS,
) -> Map:
    """Return the foreground probability of (H, W, 3) uint8 pixels: (64, 64) float32 in [0, 1].

    The picture is reduced to 64 x 64 first. sigma: standard deviation of its Gaussian smoothing in
    those pixels, 0 for none: larger for fewer, rounder regions. min_size: least area of a region
    in those pixels: larger ones swallow small parts. rounds: of refinement; 0 leaves the cues.
    """
    small = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if sigma > 0:
        small = cv2.GaussianBlur(small, (0, 0), sigma)
    lab = _lab(np.asarray(small, np.uint8))
    labels, count = segment(*sorted_edges(lab), SIDE * SIDE, SCALE, min_size)
    planes = np.ascontiguousarray(np.moveaxis(lab, 2, 0))
    layers = np.concatenate([lab, _LAYERS, barrier_distance(planes)[..., None]], axis=2)
    means = region_means(layers, labels, count)
    prior, square, ring, rim = (np.ascontiguousarray(means[:, i]) for i in range(3, 7))
    areas = np.ascontiguousarray(means[:, 8])
    ring, rim = ring * areas, rim * areas
    rows = neighbours(labels, SIDE, count)
    distance = colour_distances(means)
    kernel, pull = affinities(distance, areas, *rows)
    nearest = np.log1p(side_distances(lab, means, SIDE_WIDTH)[:, 0])
    nearest -= nearest.min()
    guesses = np.empty((3, count), np.float32)
    for guess, (cue, level) in enumerate(((nearest, 1.0), (nearest, 1.3), (means[:, 7], 1.0))):
        first = first_probability(np.ascontiguousarray(cue * prior), areas, level)
        guesses[guess] = refined(first, areas, ring, rim, kernel, rows[0], rows[1], pull, rounds)
    figures = judgement(guesses, areas, rim, square, distance, kernel, *rows)
    weight = figures @ JUDGE
    weight = np.exp(weight - weight.max())
    blend = (weight / weight.sum()) @ guesses
    result: Map = guided_filter(
        planes / np.float32(100), blend[labels].reshape(SIDE, SIDE), GUIDE_RADIUS, GUIDE_EPSILON
    )
    return result


def centre_prior(side: int, *, sigma: float) -> Map:
    """Return a (side, side) Gaussian about the centre of peak 1; sigma counts in image sides."""
    line = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-(line**2) / (2 * sigma**2))
    return np.outer(bell, bell).astype(np.float32)


def _lab(small: npt.NDArray[np.uint8]) -> Map:
    """Return (S, S, 3) Lab in its own units: L from 0 to 100, a and b from -128 to 127."""
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).astype(np.float32)
    return np.ascontiguousarray(lab * _LAB_SCALE - _LAB_SHIFT)


_LAB_SCALE = np.array([100 / 255, 1, 1], np.float32)
_LAB_SHIFT = np.array([0, 128, 128], np.float32)


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
