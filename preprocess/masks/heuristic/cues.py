"""How far each place is from the picture's border in colour: two cues of what stands in front.

1. Minimum barrier distance (Zhang et al., "Minimum barrier salient object detection at 80 FPS",
   ICCV 2015, algorithm 1).
2. Mahalanobis distance to the colours along each side (ibid., section 4).
"""

from __future__ import annotations

import numpy as np

from harl_fast.jit import njit

NOISE = np.float32(20.0)
"""Variance added to each side's colours: 4.5 Lab units keep flat sides finite."""


@njit("float32[:, ::1](float32[:, :, ::1])", cache=True)
def barrier_distance(planes):
    """Return the (H, W) minimum barrier distance to the border, summed over (C, H, W) planes.

    The barrier of a path is its largest minus its smallest value; four raster scans find nearly
    the least one. It is never below the true least.
    """
    channels, height, width = planes.shape
    total = np.zeros((height, width), np.float32)
    for channel in range(channels):
        values = planes[channel]
        distance = np.full((height, width), np.float32(np.inf))
        distance[0], distance[-1], distance[:, 0], distance[:, -1] = 0.0, 0.0, 0.0, 0.0
        high, low = values.copy(), values.copy()
        for scan in range(4):
            step = 1 if scan % 2 == 0 else -1
            for i in range(1, height - 1):
                y = i if step == 1 else height - 1 - i
                for j in range(1, width - 1):
                    x = j if step == 1 else width - 1 - j
                    value = values[y, x]
                    top = max(high[y - step, x], value)
                    bottom = min(low[y - step, x], value)
                    if top - bottom < distance[y, x]:
                        distance[y, x], high[y, x], low[y, x] = top - bottom, top, bottom
                    top = max(high[y, x - step], value)
                    bottom = min(low[y, x - step], value)
                    if top - bottom < distance[y, x]:
                        distance[y, x], high[y, x], low[y, x] = top - bottom, top, bottom
        total += distance
    return total


@njit("Tuple((float64[::1], float64[:, ::1]))(float32[:, :, :])", cache=True)
def _colours(lab):
    """Return the mean (3,) and the inverse covariance (3, 3) of (H, W, 3) pixels."""
    height, width = lab.shape[0], lab.shape[1]
    centre = np.zeros(3, np.float64)
    square = np.zeros((3, 3), np.float64)
    for y in range(height):
        for x in range(width):
            for a in range(3):
                centre[a] += lab[y, x, a]
                for b in range(3):
                    square[a, b] += lab[y, x, a] * lab[y, x, b]
    centre /= height * width
    for a in range(3):
        for b in range(3):
            square[a, b] = square[a, b] / (height * width) - centre[a] * centre[b]
        square[a, a] += NOISE
    inverse = np.empty((3, 3), np.float64)
    for a in range(3):
        for b in range(3):  # cofactors, by cyclic rows and columns, of a symmetric matrix
            c, d, e, f = (a + 1) % 3, (a + 2) % 3, (b + 1) % 3, (b + 2) % 3
            inverse[a, b] = square[c, e] * square[d, f] - square[c, f] * square[d, e]
    determinant = (square[0] * inverse[0]).sum()
    return centre, inverse / determinant


@njit("float32[:, ::1](float32[:, :, ::1], float32[:, ::1], int64)", cache=True)
def side_distances(lab, means, width):
    """Return the (N, 4) Mahalanobis distances of colours to the top, bottom, left and right side.

    lab: (H, W, 3). means: (N, C), Lab in the first three columns. A side is ``width`` pixels deep.
    """
    tall, wide = lab.shape[0], lab.shape[1]
    boxes = (
        (0, width, 0, wide),
        (tall - width, tall, 0, wide),
        (0, tall, 0, width),
        (0, tall, wide - width, wide),
    )
    result = np.empty((len(means), 4), np.float32)
    for side in range(4):
        top, bottom, left, right = boxes[side]
        centre, inverse = _colours(lab[top:bottom, left:right])
        for region in range(len(means)):
            total = 0.0
            for a in range(3):
                for b in range(3):
                    step = (means[region, a] - centre[a]) * (means[region, b] - centre[b])
                    total += inverse[a, b] * step
            result[region, side] = np.sqrt(max(total, 0.0))
    return result
