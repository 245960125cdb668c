"""The antialiased bilinear resize of a crop box, fused with the flips, in integers.

The rule is Pillow's and torchvision's (``antialias=True``): a triangle filter whose support grows
with the reduction. Weights are fixed-point and sums are integers, so that pixels are the same on
every machine and thread.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_BITS = 14
_HALF = np.int32(1 << (_BITS - 1))


@njit(cache=True)
def max_taps(box_side, out_side):  # type: ignore[no-untyped-def]
    """Return how many source pixels one output pixel can need."""
    return 2 * math.ceil(max(box_side / out_side, 1.0)) + 1


@njit(cache=True)
def _triangle(box_side, out_side, first, weights):  # type: ignore[no-untyped-def]
    """Fill each output pixel's first source pixel and its fixed-point weights; return the taps.

    first: (out_side,) int32. weights: (out_side, taps) int32, each row sums to 2^14.
    """
    scale = box_side / out_side
    support = max(scale, 1.0)
    for index in range(out_side):
        middle = (index + 0.5) * scale
        low = max(0, int(middle - support + 0.5))
        high = min(box_side, int(middle + support + 0.5))
        first[index] = low
        total = 0.0
        for source in range(low, high):
            total += max(0.0, 1.0 - abs(source + 0.5 - middle) / support)
        given, largest = 0, 0
        for tap in range(weights.shape[1]):
            source = low + tap
            share = 0.0
            if source < high:
                share = max(0.0, 1.0 - abs(source + 0.5 - middle) / support) / total
            weights[index, tap] = math.floor(share * (1 << _BITS) + 0.5)
            given += weights[index, tap]
            if weights[index, tap] > weights[index, largest]:
                largest = tap
        # A constant image must stay constant: the rounding left over goes to the largest weight.
        weights[index, largest] += (1 << _BITS) - given


@njit(cache=True)
def _rows(image, top, left, box_w, first, weights, line, strip):  # type: ignore[no-untyped-def]
    """Reduce vertically: fill ``strip`` (out rows, box_w * 3) uint8 from ``image``."""
    length = box_w * 3
    for row in range(strip.shape[0]):
        for column in range(length):
            line[column] = _HALF
        for tap in range(weights.shape[1]):
            weight = weights[row, tap]
            if weight == 0:
                continue
            source = image[top + first[row] + tap].reshape(-1)[left * 3 : left * 3 + length]
            for column in range(length):
                line[column] += weight * np.int32(source[column])
        target = strip[row]
        for column in range(length):
            target[column] = np.uint8(line[column] >> _BITS)


@njit(cache=True)
def _columns(strip, first, weights, flip, vflip, out):  # type: ignore[no-untyped-def]
    """Reduce horizontally, mirroring as asked: fill ``out`` (rows, columns, 3) uint8."""
    side = out.shape[1]
    for row in range(out.shape[0]):
        source = strip[out.shape[0] - 1 - row if vflip else row]
        for column in range(side):
            red, green, blue = _HALF, _HALF, _HALF
            place = first[column] * 3
            for tap in range(weights.shape[1]):
                weight = weights[column, tap]
                if weight != 0:
                    red += weight * np.int32(source[place])
                    green += weight * np.int32(source[place + 1])
                    blue += weight * np.int32(source[place + 2])
                place += 3
            target = side - 1 - column if flip else column
            out[row, target, 0] = np.uint8(red >> _BITS)
            out[row, target, 1] = np.uint8(green >> _BITS)
            out[row, target, 2] = np.uint8(blue >> _BITS)


@njit(cache=True)
def resize_box(image, placed, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (size, size, 3) uint8 with the resized, perhaps mirrored, box of ``image``.

    image: (H, W, 3) uint8. placed: a view as `geometry.draw_view` returns it, inside the image.
    """
    top, left, box_h, box_w, flip, vflip = placed
    out_h, out_w = out.shape[0], out.shape[1]
    first_y = np.empty(out_h, np.int32)
    weights_y = np.empty((out_h, max_taps(box_h, out_h)), np.int32)
    _triangle(box_h, out_h, first_y, weights_y)
    first_x = np.empty(out_w, np.int32)
    weights_x = np.empty((out_w, max_taps(box_w, out_w)), np.int32)
    _triangle(box_w, out_w, first_x, weights_x)
    strip = np.empty((out_h, box_w * 3), np.uint8)
    line = np.empty(box_w * 3, np.int32)
    _rows(image, top, left, box_w, first_y, weights_y, line, strip)
    _columns(strip, first_x, weights_x, flip, vflip, out)
