"""Colour operations on lines of pixels: small compiled loops that the compiler vectorises.

Pixels are planar float32 in [0, 255]. Each loop touches few arrays: LLVM gives up vectorising
when it would have to compare more than eight pairs of addresses first. Sums may be reordered
(fastmath): all inputs come from bytes, so there are neither NaN nor infinities.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_TAIL = 2.5e-4
"""Share of a Gaussian's mass that may be cut off. Twice this (two axes) bounds the error of a
pixel in [0, 1]: an eighth of a grey level of 255."""

_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_ZERO, _ONE, _TWO, _THREE = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
_FOUR, _SIX, _TOP = np.float32(4), np.float32(6), np.float32(255)


@njit(cache=True, nogil=True, fastmath=True)
def load(source, target):  # type: ignore[no-untyped-def]
    for i in range(target.shape[0]):
        target[i] = np.float32(source[i])


@njit(cache=True, nogil=True, fastmath=True)
def copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(target.shape[0]):
        target[i] = source[i]


@njit(cache=True, nogil=True, fastmath=True)
def brightness(plane, factor):  # type: ignore[no-untyped-def]
    for i in range(plane.shape[0]):
        plane[i] = min(_TOP, plane[i] * factor)


@njit(cache=True, nogil=True, fastmath=True)
def contrast(plane, factor, middle):  # type: ignore[no-untyped-def]
    shift = (_ONE - factor) * middle
    for i in range(plane.shape[0]):
        plane[i] = max(_ZERO, min(_TOP, plane[i] * factor + shift))


@njit(cache=True, nogil=True, fastmath=True)
def saturation(red, green, blue, factor):  # type: ignore[no-untyped-def]
    rest = _ONE - factor
    for i in range(red.shape[0]):
        shift = rest * (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i])
        red[i] = max(_ZERO, min(_TOP, red[i] * factor + shift))
        green[i] = max(_ZERO, min(_TOP, green[i] * factor + shift))
        blue[i] = max(_ZERO, min(_TOP, blue[i] * factor + shift))


@njit(cache=True, nogil=True, fastmath=True)
def hue(red, green, blue, shift):  # type: ignore[no-untyped-def]
    """Turn the hue by ``shift`` sectors, in [0, 6).

    HSV without a division: angles are kept times the chroma, and the way from a channel's own
    hue around the circle, a triangle wave, is two absolute values.
    """
    for i in range(red.shape[0]):
        r, g, b = red[i], green[i], blue[i]
        high, low = max(r, max(g, b)), min(r, min(g, b))
        chroma = high - low
        angle = r - g + _FOUR * chroma
        angle = b - r + _TWO * chroma if high == g else angle
        angle = g - b if high == r else angle
        angle += shift * chroma
        angle -= _SIX * chroma if angle >= _SIX * chroma else _ZERO
        half, base = _THREE * chroma, high - _TWO * chroma
        # The angle lies in [-1, 6) chromas here, where these are the distances around the circle.
        red[i] = min(high, max(low, base + abs(abs(angle) - half)))
        green[i] = min(high, max(low, base + abs(abs(angle - _TWO * chroma) - half)))
        blue[i] = min(high, max(low, base + abs(abs(angle - _FOUR * chroma) - half)))


@njit(cache=True, nogil=True, fastmath=True)
def grey(red, green, blue):  # type: ignore[no-untyped-def]
    for i in range(red.shape[0]):
        red[i] = _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]


@njit(cache=True, nogil=True, fastmath=True)
def total(plane):  # type: ignore[no-untyped-def]
    total = _ZERO
    for i in range(plane.shape[0]):
        total += plane[i]
    return np.float64(total)


@njit(cache=True, nogil=True)
def sum_bytes(plane):  # type: ignore[no-untyped-def]
    total = np.uint32(0)
    for i in range(plane.shape[0]):
        total += np.uint32(plane[i])
    return np.float64(total)


@njit(cache=True, nogil=True)
def half_kernel(sigma, radius, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the weights of a Gaussian's centre and right side; return their reach.

    The exact rule normalises over all taps up to ``radius``; here the outermost ones that hold
    less than `_TAIL` are left out and the rest is normalised again.
    """
    total = 1.0
    for tap in range(1, radius + 1):
        total += 2.0 * math.exp(-0.5 * (tap / sigma) ** 2)
    kept, reach = 1.0, 0
    while total - kept > _TAIL * total:
        reach += 1
        kept += 2.0 * math.exp(-0.5 * (reach / sigma) ** 2)
    for tap in range(reach + 1):
        out[tap] = math.exp(-0.5 * (tap / sigma) ** 2) / kept
    return reach


@njit(cache=True, nogil=True, fastmath=True)
def taps0(centre, w, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = w * centre[i]


@njit(cache=True, nogil=True, fastmath=True)
def taps1(a, b, w, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] += w * (a[i] + b[i])


@njit(cache=True, nogil=True, fastmath=True)
def taps4(a, b, c, d, e, f, g, h, weights, out):  # type: ignore[no-untyped-def]
    s, t, v, w = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.shape[0]):
        first = s * (a[i] + b[i]) + t * (c[i] + d[i])
        out[i] += first + (v * (e[i] + f[i]) + w * (g[i] + h[i]))


@njit(cache=True, nogil=True, fastmath=True)
def taps4_across(left, right, weights, out):  # type: ignore[no-untyped-def]
    """Add four pairs of taps of a line: the first pair is left[3] and right[0]."""
    s, t, v, w = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.shape[0]):
        first = s * (left[i + 3] + right[i]) + t * (left[i + 2] + right[i + 1])
        out[i] += first + (v * (left[i + 1] + right[i + 2]) + w * (left[i] + right[i + 3]))


@njit(cache=True, nogil=True, fastmath=True)
def solarize(plane):  # type: ignore[no-untyped-def]
    """Invert the upper half: the smaller of a value and its inverse."""
    for i in range(plane.shape[0]):
        plane[i] = min(plane[i], _TOP - plane[i])


@njit(cache=True, nogil=True, fastmath=True)
def interleave(red, green, blue, scale, offset, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (n, 3) with value * scale + offset of each channel."""
    red_scale, green_scale, blue_scale = scale[0], scale[1], scale[2]
    red_offset, green_offset, blue_offset = offset[0], offset[1], offset[2]
    for i in range(out.shape[0]):
        out[i, 0] = np.float32(red[i]) * red_scale + red_offset
        out[i, 1] = np.float32(green[i]) * green_scale + green_offset
        out[i, 2] = np.float32(blue[i]) * blue_scale + blue_offset
