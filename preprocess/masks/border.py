"""Cheap maps that tell the network how each place differs from the image's border.

A small network sees colours near a place, but hardly "unlike the background", which is what makes
an object. So it is told: the Mahalanobis distance to the colours along each side, and the minimum
barrier distance to the border (Zhang et al., ICCV 2015), both in Lab.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from numba import njit

COUNT = 6
"""Cues of a place: distance to each side, the second smallest of those, the barrier distance."""
STRIP = 0.08
"""Width of the strip along a side, in sides."""
NOISE = 20.0
"""Variance added to the strip's colours, in levels squared, so that flat ones divide nothing."""
REACH = 8.0
"""Distances of this many deviations become 1/2: beyond, more says little more."""


def border_cues(rgb: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float32]:
    """Return the (`COUNT`, side, side) float32 cues, in [0, 1], of (H, W, 3) uint8 pixels."""
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).astype(np.float32)
    return _cues(lab, max(2, round(STRIP * side)))  # type: ignore[no-any-return]


@njit(cache=True, fastmath=True)
def _cues(lab, strip):  # type: ignore[no-untyped-def]
    side = lab.shape[0]
    cues = np.empty((6, side, side), np.float32)
    for number in range(4):
        y0, y1, x0, x1 = 0, side, 0, side
        if number == 0:
            y1 = strip
        elif number == 1:
            y0 = side - strip
        elif number == 2:
            x1 = strip
        else:
            x0 = side - strip
        _distances(lab, y0, y1, x0, x1, cues[number])
    for y in range(side):
        for x in range(side):
            up, down, left, right = cues[0, y, x], cues[1, y, x], cues[2, y, x], cues[3, y, x]
            # The second smallest: one side may be covered by the object.
            lower = max(min(up, down), min(left, right))
            cues[4, y, x] = min(lower, max(up, down), max(left, right))
    cues[5] = 0
    for channel in range(3):
        cues[5] += _barrier(np.ascontiguousarray(lab[:, :, channel]))
    cues[5] /= cues[5] + np.float32(40)
    return cues


@njit(cache=True, fastmath=True)
def _distances(lab, y0, y1, x0, x1, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the squashed Mahalanobis distance to the colours of a box."""
    light, a, b, inverse = _colours(lab[y0:y1, x0:x1])
    ll, aa, bb = inverse[0, 0], inverse[1, 1], inverse[2, 2]
    la, lb, ab = 2 * inverse[0, 1], 2 * inverse[0, 2], 2 * inverse[1, 2]
    for y in range(lab.shape[0]):
        for x in range(lab.shape[1]):
            u, v, w = lab[y, x, 0] - light, lab[y, x, 1] - a, lab[y, x, 2] - b
            square = ll * u * u + aa * v * v + bb * w * w + la * u * v + lb * u * w + ab * v * w
            distance = np.sqrt(max(square, np.float32(0)))
            out[y, x] = distance / (distance + np.float32(REACH))


@njit(cache=True, fastmath=True)
def _colours(strip):  # type: ignore[no-untyped-def]
    """Return the mean colour of (h, w, 3) values and the inverse of their covariance."""
    count = strip.shape[0] * strip.shape[1]
    mean, square = np.zeros(3), np.zeros((3, 3))
    for y in range(strip.shape[0]):
        for x in range(strip.shape[1]):
            for i in range(3):
                mean[i] += strip[y, x, i]
                for j in range(3):
                    square[i, j] += strip[y, x, i] * strip[y, x, j]
    mean /= count
    square = square / count - np.outer(mean, mean) + NOISE * np.eye(3)
    inverse = np.linalg.inv(square).astype(np.float32)
    return np.float32(mean[0]), np.float32(mean[1]), np.float32(mean[2]), inverse


@njit(cache=True, fastmath=True)
def _barrier(values):  # type: ignore[no-untyped-def]
    """Return the minimum barrier distance of (S, S) values to the border, by four raster scans."""
    side = values.shape[0]
    distance = np.full((side, side), np.float32(1e9))
    distance[0], distance[-1], distance[:, 0], distance[:, -1] = 0, 0, 0, 0
    high, low = values.copy(), values.copy()
    for scan in range(4):
        step = 1 if scan % 2 == 0 else -1
        for i in range(1, side - 1):
            y = i if step == 1 else side - 1 - i
            for j in range(1, side - 1):
                x = j if step == 1 else side - 1 - j
                for way in range(2):
                    v, u = (y - step, x) if way == 0 else (y, x - step)
                    top = max(high[v, u], values[y, x])
                    bottom = min(low[v, u], values[y, x])
                    if top - bottom < distance[y, x]:
                        distance[y, x], high[y, x], low[y, x] = top - bottom, top, bottom
    return distance
