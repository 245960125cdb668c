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
    MIN_SIZE,
    ROUNDS,
    SIGMA,
    analysed,
    find_regions,
    on_edges,
)
from preprocess.masks.refine import first_probability

Map = npt.NDArray[np.float32]


def outlined(rgb: npt.NDArray[np.uint8], belief: Map) -> Map:
    """Return a (64, 64) belief in [0, 1] about (H, W, 3) uint8 pixels as (128, 128) float32.

    Places of one colour get one belief, colour models of both sides and smoothing correct it, and
    the outline moves to the edges.
    """
    fine, lab = analysed(rgb, sigma=SIGMA)
    regions = find_regions(lab, belief.astype(np.float32), min_size=MIN_SIZE)
    first = first_probability(regions.value, regions.areas, 1.0)
    return on_edges(fine, lab, regions, regions.refined(first, rounds=ROUNDS))


def centred(soft: Map) -> Map:
    """Return a map scaled so that its Otsu level becomes 1/2, cut off at 1."""
    return np.asarray(np.clip(soft * (0.5 / max(otsu_level(soft), 0.05)), 0, 1), np.float32)


def resized(plane: Map, side: int) -> Map:
    """Return a map in [0, 1] as (side, side): area means when shrinking, else bilinear."""
    method = cv2.INTER_AREA if side < len(plane) else cv2.INTER_LINEAR
    values = cv2.resize(plane, (side, side), interpolation=method)
    return np.asarray(np.clip(values, 0, 1), np.float32)
