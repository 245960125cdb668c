"""A belief about the whole image, made to follow the image: regions, colours, edges.

The heuristic's last steps (see `preprocess.masks.heuristic`), started from a belief that comes from
elsewhere, a network say, in place of the contrast to the border.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.masks.binary import otsu_level
from preprocess.masks.heuristic import (
    FINE,
    GUIDE_EPSILON,
    GUIDE_RADIUS,
    MIN_SIZE,
    RING,
    ROUNDS,
    SCALE,
    SIDE,
    SIGMA,
)
from preprocess.masks.refine import affinities, first_probability, refined
from preprocess.masks.regions import (
    colour_distances,
    neighbours,
    region_means,
    segment,
    sorted_edges,
)
from preprocess.masks.smooth import follow, guided_lines

Map = npt.NDArray[np.float32]


def outlined(rgb: npt.NDArray[np.uint8], belief: Map) -> Map:
    """Return a (64, 64) belief in [0, 1] about (H, W, 3) uint8 pixels as (128, 128) float32.

    Places of one colour get one belief, colour models of both sides and smoothing correct it, and
    the outline moves to the edges.
    """
    fine = cv2.resize(rgb, (FINE, FINE), interpolation=cv2.INTER_AREA)
    small = cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = _lab(cv2.GaussianBlur(small, (0, 0), SIGMA))
    labels, count = segment(*sorted_edges(lab), SIDE * SIDE, SCALE, MIN_SIZE)
    layers = np.concatenate([lab, _BORDER, belief[..., None].astype(np.float32)], axis=2)
    means = region_means(layers, labels, count)
    columns = np.ascontiguousarray(means.T)
    areas = columns[6]
    ring, rim = columns[3] * areas, columns[4] * areas
    starts, others, *sides = neighbours(labels, SIDE, count)
    kernel, pull = affinities(colour_distances(means), areas, starts, others, *sides)
    first = first_probability(columns[5], areas, 1.0)
    better = refined(first, areas, ring, rim, kernel, starts, others, pull, ROUNDS)
    plane = better[labels].reshape(SIDE, SIDE)
    lines = guided_lines(lab, plane, GUIDE_RADIUS, GUIDE_EPSILON)
    result: Map = follow(cv2.resize(lines, (FINE, FINE)), _lab(fine))
    return np.clip(result, 0, 1)


def centred(soft: Map) -> Map:
    """Return a map scaled so that its Otsu level becomes 1/2, cut off at 1."""
    return np.asarray(np.clip(soft * (0.5 / max(otsu_level(soft), 0.05)), 0, 1), np.float32)


def resized(plane: Map, side: int) -> Map:
    """Return a map in [0, 1] as (side, side): area means when shrinking, else bilinear."""
    method = cv2.INTER_AREA if side < len(plane) else cv2.INTER_LINEAR
    values = cv2.resize(plane, (side, side), interpolation=method)
    return np.asarray(np.clip(values, 0, 1), np.float32)


def _lab(rgb: npt.NDArray[np.uint8]) -> Map:
    """Return (S, S, 3) Lab in its own units: L 0 to 100, a and b about -100 to 100."""
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return np.ascontiguousarray(lab, np.float32)


def _border() -> Map:
    """Return (64, 64, 2): the ring that stays background, the outermost pixels."""
    ring, rim = np.ones((2, SIDE, SIDE), np.float32)
    ring[RING:-RING, RING:-RING] = 0
    rim[1:-1, 1:-1] = 0
    return np.stack([ring, rim], axis=2)


_BORDER = _border()
