"""Rows of an 8-bit grey PNG as it stores them, each by its filter, to pixels.

PNG, third edition, section 9: https://www.w3.org/TR/png-3/#9Filters
"""

from __future__ import annotations

import numpy as np

from harl_fast.jit import njit

NONE, SUB, UP, AVERAGE, PAETH = range(5)
"""The filters, of which each row's first byte names one."""


@njit(inline="always")
def _predicted(kind, left, up, corner):
    """Return what a filter takes a pixel for, of the pixels left, above, and above left of it."""
    if kind == NONE:
        return 0
    if kind == UP:
        return up
    if kind == AVERAGE:
        return (left + up) // 2
    if kind == SUB or up == corner:  # Paeth's also is the left one then: most of a mask
        return left
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


@njit("boolean(uint8[:, ::1], uint8[:, ::1])", cache=True)
def unfilter(rows, pixels):
    """Turn (H, 1 + W) uint8 rows into (H, W) uint8 pixels; return False for an unknown filter."""
    above = np.zeros(pixels.shape[1], np.uint8)
    for y in range(pixels.shape[0]):
        kind, coded, row = rows[y, 0], rows[y, 1:], pixels[y]
        if kind > PAETH:
            return False
        left = corner = np.int64(0)
        for x in range(row.size):
            up = np.int64(above[x])
            left = (coded[x] + _predicted(kind, left, up, corner)) & 255
            row[x] = left
            corner = up
        above = row
    return True
