"""The one rule that turns any soft map into a mask: threshold, clean, stand-in."""

from __future__ import annotations

import cv2
import numpy as np

from preprocess.images.arrays import Map, Mask

LEAST_SHARE, MOST_SHARE = 0.01, 0.9
"""Outside these shares of the image a mask says nothing about the object."""
SPECK_SHARE = 0.1
"""A piece smaller than this share of the largest piece is a speck."""
STAND_IN_RADIUS = 0.35
"""Semi-axis of the stand-in ellipse in image sides: it covers 38 % of the image."""


def otsu_level(soft: Map) -> float:
    """Return Otsu's threshold (IEEE SMC 1979) of a map with values in [0, 1]."""
    levels = np.rint(soft * 255).astype(np.uint8)
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # OpenCV counts a pixel as foreground above the level: the cut lies between two levels.
    return (float(level) + 0.5) / 255


def binarize(soft: Map) -> tuple[Mask, bool]:
    """Return a map's mask, and whether the centre ellipse had to stand in for it.

    soft: (S, S) float32 in [0, 1]. Pieces below `SPECK_SHARE` of the largest go, holes are
    filled; a mask that then covers under 1 % or over 90 % is replaced.
    """
    mask = fill_holes(drop_specks(soft > otsu_level(soft)))
    if LEAST_SHARE <= mask.mean() <= MOST_SHARE:
        return mask, False
    return centre_ellipse(len(soft)), True


def drop_specks(mask: Mask) -> Mask:
    """Return a mask without its small pieces (8-connected)."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    kept = (areas > 0) & (areas >= SPECK_SHARE * areas.max())
    result: Mask = kept[pieces]
    return result


def fill_holes(mask: Mask) -> Mask:
    """Return a mask with every background region filled that does not touch the edge."""
    count, regions = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)
    hole = np.ones(count, np.bool_)
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        hole[edge] = False
    result: Mask = mask | hole[regions]
    return result


def centre_ellipse(side: int) -> Mask:
    """Return a (side, side) mask of the ellipse that stands in for a useless mask."""
    line = (np.arange(side) + 0.5) / side - 0.5
    result: Mask = line[:, None] ** 2 + line**2 <= STAND_IN_RADIUS**2
    return result


def centre_prior(side: int, *, sigma: float) -> Map:
    """Return a (side, side) Gaussian about the centre of peak 1; sigma counts in image sides."""
    line = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-(line**2) / (2 * sigma**2))
    return np.outer(bell, bell).astype(np.float32)


def centred(soft: Map) -> Map:
    """Return a map scaled so that its Otsu level becomes 1/2, cut off at 1."""
    return np.asarray(np.clip(soft * (0.5 / max(otsu_level(soft), 0.05)), 0, 1), np.float32)


def resized(plane: Map, side: int) -> Map:
    """Return a map in [0, 1] as (side, side): area means when shrinking, else bilinear."""
    method = cv2.INTER_AREA if side < len(plane) else cv2.INTER_LINEAR
    values = cv2.resize(plane, (side, side), interpolation=method)
    return np.asarray(np.clip(values, 0, 1), np.float32)
