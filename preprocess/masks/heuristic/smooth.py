"""Edge-aware smoothing along a colour picture: the guided filter.

He, Sun and Tang, "Guided image filtering", TPAMI 2013, equations 19 to 21 (colour guidance). The
lines are found in a small picture and followed in a larger one (He and Sun, "Fast guided filter",
2015), so that the result has the larger one's edges.
"""

from __future__ import annotations

import numpy as np

from harl_fast.jit import FAST_SUMS, njit


@njit("void(float32[:, ::1], int64)", cache=True)
def _mean_along_columns(plane, radius):
    """Turn (H, W) values into means over ``radius`` rows to both sides, cut at the edge."""
    height, width = plane.shape
    before = plane.copy()
    sums = np.zeros(width, np.float32)
    count = 0
    for y in range(-radius, height):
        if y + radius < height:
            for x in range(width):
                sums[x] += before[y + radius, x]
            count += 1
        if y - radius > 0:
            for x in range(width):
                sums[x] -= before[y - radius - 1, x]
            count -= 1
        if y >= 0:
            scale = np.float32(1) / np.float32(count)
            for x in range(width):
                plane[y, x] = sums[x] * scale


@njit("void(float32[:, ::1], int64)", cache=True)
def _box(plane, radius):
    """Turn (S, S) values into the means of their windows, cut at the edge."""
    _mean_along_columns(plane, radius)
    turned = plane.T.copy()
    _mean_along_columns(turned, radius)
    for y in range(len(plane)):
        for x in range(len(plane)):
            plane[y, x] = turned[x, y]


@njit("void(float32[:, :, ::1], float32)", cache=True, fastmath=FAST_SUMS)
def _regress(mean, epsilon):
    """Turn the 13 means at each pixel into a slope (planes 3 to 5) and an offset (plane 6)."""
    _, height, width = mean.shape
    for y in range(height):
        for x in range(width):
            m0, m1, m2, p = mean[0, y, x], mean[1, y, x], mean[2, y, x], mean[9, y, x]
            c00, c01 = mean[3, y, x] - m0 * m0 + epsilon, mean[4, y, x] - m0 * m1
            c02, c11 = mean[5, y, x] - m0 * m2, mean[6, y, x] - m1 * m1 + epsilon
            c12, c22 = mean[7, y, x] - m1 * m2, mean[8, y, x] - m2 * m2 + epsilon
            v0, v1 = mean[10, y, x] - m0 * p, mean[11, y, x] - m1 * p
            v2 = mean[12, y, x] - m2 * p
            # Cramer's rule on the symmetric 3 x 3 covariance.
            i00, i01, i02 = c11 * c22 - c12 * c12, c02 * c12 - c01 * c22, c01 * c12 - c02 * c11
            i11, i12, i22 = c00 * c22 - c02 * c02, c01 * c02 - c00 * c12, c00 * c11 - c01 * c01
            scale = 1 / (c00 * i00 + c01 * i01 + c02 * i02)
            s0 = (i00 * v0 + i01 * v1 + i02 * v2) * scale
            s1 = (i01 * v0 + i11 * v1 + i12 * v2) * scale
            s2 = (i02 * v0 + i12 * v1 + i22 * v2) * scale
            mean[3, y, x], mean[4, y, x], mean[5, y, x] = s0, s1, s2
            mean[6, y, x] = p - s0 * m0 - s1 * m1 - s2 * m2


@njit(
    "float32[:, :, ::1](float32[:, :, ::1], float32[:, ::1], int64, float32)",
    cache=True,
    fastmath=FAST_SUMS,
)
def guided_lines(guide, values, radius, epsilon):
    """Return (S, S, 4): the slope and offset that give (S, S) values from the (S, S, 3) guide.

    Windows have 2 ``radius`` + 1 pixels per side, less at the edge. epsilon: the guide's variance
    within a window below which its edges are smoothed over.
    """
    side = len(guide)
    # Means of: the guide (3), its products (6: 00 01 02 11 12 22), value, value times guide (3).
    mean = np.empty((13, side, side), np.float32)
    for y in range(side):
        for x in range(side):
            mean[9, y, x] = values[y, x]
            at = 3
            for a in range(3):
                mean[a, y, x] = guide[y, x, a]
                mean[10 + a, y, x] = guide[y, x, a] * values[y, x]
                for b in range(a, 3):
                    mean[at, y, x] = guide[y, x, a] * guide[y, x, b]
                    at += 1
    for plane in range(13):
        _box(mean[plane], radius)
    _regress(mean, epsilon)
    lines = np.empty((side, side, 4), np.float32)
    for plane in range(4):
        _box(mean[3 + plane], radius)
        for y in range(side):
            for x in range(side):
                lines[y, x, plane] = mean[3 + plane, y, x]
    return lines


@njit("float32[:, ::1](float32[:, :, ::1], float32[:, :, ::1])", cache=True)
def follow(lines, guide):
    """Return the (S, S) values that (S, S, 4) lines give at the (S, S, 3) guide, cut to [0, 1]."""
    side = len(guide)
    result = np.empty((side, side), np.float32)
    for y in range(side):
        for x in range(side):
            total = lines[y, x, 3]
            for a in range(3):
                total += lines[y, x, a] * guide[y, x, a]
            result[y, x] = min(max(total, np.float32(0)), np.float32(1))
    return result
