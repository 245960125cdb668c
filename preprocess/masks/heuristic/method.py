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

from typing import Annotated, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from harl_fast.errors import ConfigError
from harl_fast.jit import njit
from preprocess.images.arrays import Map, Pixels
from preprocess.masks.heuristic.binary import centre_prior
from preprocess.masks.heuristic.cues import barrier_distance, side_distances
from preprocess.masks.heuristic.refine import affinities, first_probability, judgement, refined
from preprocess.masks.heuristic.regions import (
    colour_distances,
    neighbours,
    region_means,
    segment,
    sorted_edges,
)
from preprocess.masks.heuristic.smooth import follow, guided_lines

SIDE, FINE = 64, 128
"""Pixels per side: of the picture that is analysed, of the map."""
SIGMA, MIN_SIZE, ROUNDS = 0.5, 4, 4
"""Defaults of `heuristic_map`."""
SCALE = 10.0
"""Felzenszwalb and Huttenlocher's k, in Lab units times pixels of the 64 x 64 picture."""
CENTRE_SIGMA = 0.33
"""Standard deviation of the centre prior in image sides."""
SIDE_WIDTH, RING = 5, 3
"""Pixels: depth of the sides whose colours are background, of the ring that stays background."""
JUDGE = np.array([2.0, -2.0, -14.0, -12.0, 12.0], np.float32)
"""Weight of each figure of `refine.judgement` in a guess's weight, in nats per unit."""
_PRIOR, _SQUARE, _RING, _RIM, _PLANE, _AREA = range(3, 9)
"""Columns of `Regions.means` after Lab."""
GUIDE_RADIUS, GUIDE_EPSILON = 8, 3.0
"""Of the guided filter: half the window in pixels, variance in square Lab units."""


def heuristic_map(
    rgb: Pixels,
    *,
    sigma: Annotated[float, Field(ge=0, le=32)] = SIGMA,
    min_size: Annotated[int, Field(ge=0, le=4096)] = MIN_SIZE,
    rounds: Annotated[int, Field(ge=0, le=100)] = ROUNDS,
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
    fine, lab = analysed(rgb, sigma=sigma)
    barrier = barrier_distance(np.ascontiguousarray(np.moveaxis(lab, 2, 0)))
    regions = find_regions(lab, barrier, min_size=min_size)
    return on_edges(fine, lab, regions, _blend(regions, lab, rounds=rounds))


def outlined(rgb: Pixels, belief: Map) -> Map:
    """Return a (64, 64) belief in [0, 1] about (H, W, 3) uint8 pixels as (128, 128) float32.

    Places of one colour get one belief, colour models of both sides and smoothing correct it, and
    the outline moves to the edges.
    """
    fine, lab = analysed(rgb, sigma=SIGMA)
    regions = find_regions(lab, belief.astype(np.float32), min_size=MIN_SIZE)
    first = first_probability(regions.value, regions.areas, 1.0)
    return on_edges(fine, lab, regions, regions.refined(first, rounds=ROUNDS))


class Regions(NamedTuple):
    """The N regions of a 64 x 64 picture and what refinement needs to know of them."""

    labels: npt.NDArray[np.int32]
    """(64 * 64,): the region of each pixel."""
    means: Map
    """(N, 9): mean Lab, the four `_LAYERS`, the given plane; then the area in pixels."""
    value: Map
    """(N,): mean of the given plane."""
    areas: Map
    """(N,): pixels; ``ring`` and ``rim`` count those in the outer ring and on the very border."""
    ring: Map
    rim: Map
    neighbours: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Map]
    """Sparse rows of `regions.neighbours`."""
    distance: Map
    """(N, N): colour distance in Lab units."""
    kernel: Map
    pull: Map
    """See `refine.affinities`."""

    def refined(self, first: Map, *, rounds: int) -> Map:
        """Return a (N,) probability after ``rounds`` of `refine.refined`."""
        starts, others, _ = self.neighbours
        result: Map = refined(
            first, self.areas, self.ring, self.rim, self.kernel, starts, others, self.pull, rounds
        )
        return result


def analysed(rgb: Pixels, *, sigma: float) -> tuple[Pixels, Map]:
    """Return (H, W, 3) pixels at 128 x 128, and smoothed at 64 x 64 in Lab units, float32."""
    fine = cv2.resize(rgb, (FINE, FINE), interpolation=cv2.INTER_AREA)
    small = cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if sigma > 0:
        small = cv2.GaussianBlur(small, (0, 0), sigma)
    return np.asarray(fine, np.uint8), _lab_units(cv2.cvtColor(small, cv2.COLOR_RGB2Lab))


def find_regions(lab: Map, plane: Map, *, min_size: int) -> Regions:
    """Return the regions of (64, 64, 3) Lab pixels with their means of a (64, 64) plane."""
    labels, count = segment(*sorted_edges(lab), SIDE * SIDE, SCALE, min_size)
    means = region_means(np.concatenate([lab, _LAYERS, plane[..., None]], axis=2), labels, count)
    value, areas = np.ascontiguousarray(means.T)[[_PLANE, _AREA]]
    rows = neighbours(labels, SIDE, count)
    distance = colour_distances(means)
    kernel, pull = affinities(distance, areas, *rows)
    ring, rim = (np.ascontiguousarray(means[:, place]) * areas for place in (_RING, _RIM))
    return Regions(labels, means, value, areas, ring, rim, rows, distance, kernel, pull)


def on_edges(fine: Pixels, lab: Map, regions: Regions, values: Map) -> Map:
    """Return (N,) region values as (128, 128) float32 in [0, 1] that follows the picture's edges.

    fine, lab: as from `analysed`.
    """
    plane = values[regions.labels].reshape(SIDE, SIDE)
    lines = guided_lines(lab, plane, GUIDE_RADIUS, GUIDE_EPSILON)
    result: Map = follow(
        cv2.resize(lines, (FINE, FINE)), _lab_units(cv2.cvtColor(fine, cv2.COLOR_RGB2Lab))
    )
    return result


def _blend(regions: Regions, lab: Map, *, rounds: int) -> Map:
    """Return the (N,) weighed mean of the guesses; the regions' value is the barrier distance."""
    columns = np.ascontiguousarray(regions.means.T)
    prior, square = columns[_PRIOR], columns[_SQUARE]
    nearest = np.log1p(side_distances(lab, regions.means, SIDE_WIDTH).min(axis=1))
    nearest = nearest - nearest.min()
    cues = ((nearest, 1.0), (nearest, 1.3), (regions.value, 1.0))
    guesses = np.empty((len(cues), len(prior)), np.float32)
    for guess, (cue, level) in zip(guesses, cues, strict=True):
        first = first_probability(cue * prior, regions.areas, level)
        guess[:] = regions.refined(first, rounds=rounds)
    figures = judgement(
        guesses, regions.areas, regions.rim, square, regions.distance, regions.kernel,
        *regions.neighbours,
    )  # fmt: skip
    weight = figures @ JUDGE
    weight = np.exp(weight - weight.max())
    blend: Map = (weight / weight.sum()) @ guesses
    return blend


@njit("float32[:, :, ::1](uint8[:, :, ::1])", cache=True)
def _lab_units(levels):
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
