"""Colour operations on lines of pixels: small compiled loops that the compiler vectorises.

Pixels are planar float32 in [0, 255]. Each loop touches few arrays: LLVM gives up vectorising
when it would have to compare more than eight pairs of addresses first. Sums may be reordered
(fastmath): all inputs come from bytes, so there are neither NaN nor infinities.
"""

from __future__ import annotations

import math

import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from harl_fast.jit import njit

_TAIL = 2.5e-4
"""Share of a Gaussian's mass that may be cut off. Twice this (two axes) bounds the error of a
pixel in [0, 1]: an eighth of a grey level of 255."""

_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_ZERO, _ONE, _TWO, _THREE = np.float32(0), np.float32(1), np.float32(2), np.float32(3)
_FOUR, _SIX, _TOP, _HALF = np.float32(4), np.float32(6), np.float32(255), np.float32(0.5)
FIXED = 256
"""Units of a level in 16-bit fixed point; 255 of them leave room for what rounding adds."""
_FIXED, _BITS, _BIT = np.float32(FIXED), np.uint32(16), np.uint32(1)


@intrinsic
def borrowed(typing_context, array):
    """Return the same array without its owner, so that its slices count no references.

    Each count is a locked instruction, and a blurred view takes thousands of them otherwise. The
    caller must hold the array for as long as the result is used.
    """

    def generate(context, builder, signature, arguments):
        struct = make_array(signature.return_type)(context, builder, arguments[0])
        struct.meminfo = cgutils.get_null_value(struct.meminfo.type)
        struct.parent = cgutils.get_null_value(struct.parent.type)
        return struct._getvalue()

    return array(array), generate


@njit(cache=True, nogil=True, fastmath=True)
def load(source, target):
    for i in range(target.shape[0]):
        target[i] = np.float32(source[i])


@njit(cache=True, nogil=True, fastmath=True)
def copy(source, target):
    for i in range(target.shape[0]):
        target[i] = source[i]


@njit(cache=True, nogil=True, fastmath=True)
def brightness(plane, factor):
    for i in range(plane.shape[0]):
        plane[i] = min(_TOP, plane[i] * factor)


@njit(cache=True, nogil=True, fastmath=True)
def contrast(plane, factor, middle):
    shift = (_ONE - factor) * middle
    for i in range(plane.shape[0]):
        plane[i] = max(_ZERO, min(_TOP, plane[i] * factor + shift))


@njit(cache=True, nogil=True, fastmath=True)
def saturation(red, green, blue, factor):
    rest = _ONE - factor
    for i in range(red.shape[0]):
        shift = rest * (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i])
        red[i] = max(_ZERO, min(_TOP, red[i] * factor + shift))
        green[i] = max(_ZERO, min(_TOP, green[i] * factor + shift))
        blue[i] = max(_ZERO, min(_TOP, blue[i] * factor + shift))


@njit(cache=True, nogil=True, fastmath=True)
def hue(red, green, blue, shift):
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
def grey(red, green, blue):
    for i in range(red.shape[0]):
        red[i] = _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]


@njit(cache=True, nogil=True, fastmath=True)
def total(plane):
    total = _ZERO
    for i in range(plane.shape[0]):
        total += plane[i]
    return np.float64(total)


@njit(cache=True, nogil=True)
def sum_bytes(plane):
    total = np.uint32(0)
    for i in range(plane.shape[0]):
        total += np.uint32(plane[i])
    return np.float64(total)


@njit(cache=True, nogil=True)
def reach_of(sigma, radius):
    """Return (reach, total): how far a Gaussian's taps must go, and the sum of their weights.

    The exact rule normalises over all taps up to ``radius``; here the outermost ones that hold
    less than `_TAIL` together are left out. Reach 0: nothing to blur.
    """
    total = 1.0
    for tap in range(1, radius + 1):
        total += 2.0 * math.exp(-0.5 * (tap / sigma) ** 2)
    kept, reach = 1.0, 0
    while total - kept > _TAIL * total:
        reach += 1
        kept += 2.0 * math.exp(-0.5 * (reach / sigma) ** 2)
    return reach, kept


@njit(cache=True, nogil=True)
def fill_weights(sigma, total, out):
    """Fill ``out`` (reach + 1, n) uint16, one line of equal weights per tap, in units of 1 / 65536.

    The centre's weight is first, then that of each pair. Lines instead of numbers, because LLVM
    multiplies 16 bits by 16 in one instruction only if both factors are vectors from memory.
    """
    left = 65536
    for tap in range(1, out.shape[0]):
        weight = math.floor(2.0 * 65536.0 * math.exp(-0.5 * (tap / sigma) ** 2) / total + 0.5)
        left -= weight
        out[tap, :] = np.uint16(weight)
    out[0, :] = np.uint16(left)  # with what rounding leaves over: a constant picture stays as it is


@njit(cache=True, nogil=True, fastmath=True)
def to_fixed(source, target):
    """Fill uint16 ``target`` with ``source`` in `FIXED` units per level, rounded."""
    for i in range(target.shape[0]):
        target[i] = np.uint16(np.int32(source[i] * _FIXED + _HALF))


@njit(cache=True, nogil=True, fastmath=True)
def from_fixed(source, target):
    """Fill float32 ``target`` with levels from uint16 ``source``."""
    for i in range(target.shape[0]):
        target[i] = np.float32(source[i]) * (_ONE / _FIXED)


@njit(inline="always")
def _share(value, weight):
    """Return the upper half of a 16-bit product: one machine instruction for a vector."""
    return np.uint16(np.uint32(np.uint32(value) * np.uint32(weight)) >> _BITS)


@njit(inline="always")
def _mean(one, other):
    """Return the rounded mean of two uint16: one machine instruction for a vector."""
    return np.uint16(np.uint32(np.uint32(one) + np.uint32(other) + _BIT) >> _BIT)


@njit(cache=True, nogil=True)
def taps0(centre, weights, out):
    """Start a sum of taps; weights: the lines of all taps.

    Every product is cut to 16 bits and loses half a unit on average, which is added here.
    """
    w, start = weights[0], np.uint16(weights.shape[0] // 2)
    for i in range(out.shape[0]):
        out[i] = np.uint16(start + _share(centre[i], w[i]))


@njit(cache=True, nogil=True)
def taps1(a, b, weights, out):
    """Add one pair of taps to a sum."""
    w = weights[0]
    for i in range(out.shape[0]):
        out[i] = np.uint16(out[i] + _share(_mean(a[i], b[i]), w[i]))


@njit(cache=True, nogil=True)
def taps2(a, b, c, d, weights, out):
    """Add two pairs of taps to a sum."""
    v, w = weights[0], weights[1]
    for i in range(out.shape[0]):
        both = np.uint16(_share(_mean(a[i], b[i]), v[i]) + _share(_mean(c[i], d[i]), w[i]))
        out[i] = np.uint16(out[i] + both)


@njit(cache=True, nogil=True)
def taps4(a, b, c, d, e, f, g, h, weights, out):
    """Add four pairs of taps to a sum."""
    s, t, v, w = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.shape[0]):
        inner = np.uint16(_share(_mean(a[i], b[i]), s[i]) + _share(_mean(c[i], d[i]), t[i]))
        outer = np.uint16(_share(_mean(e[i], f[i]), v[i]) + _share(_mean(g[i], h[i]), w[i]))
        out[i] = np.uint16(out[i] + np.uint16(inner + outer))


@njit(cache=True, nogil=True, fastmath=True)
def solarize(plane):
    """Invert the upper half: the smaller of a value and its inverse."""
    for i in range(plane.shape[0]):
        plane[i] = min(plane[i], _TOP - plane[i])


@njit(cache=True, nogil=True, fastmath=True)
def interleave(red, green, blue, scale, offset, out):
    """Fill ``out`` (3 * n,) with value * scale + offset of each channel in turn.

    Plain unsigned places: only then does LLVM see a stride of three and shuffle whole vectors.
    """
    red_scale, green_scale, blue_scale = scale[0], scale[1], scale[2]
    red_offset, green_offset, blue_offset = offset[0], offset[1], offset[2]
    for i in range(red.shape[0]):
        place = np.uint64(3) * np.uint64(i)
        out[place] = np.float32(red[i]) * red_scale + red_offset
        out[place + np.uint64(1)] = np.float32(green[i]) * green_scale + green_offset
        out[place + np.uint64(2)] = np.float32(blue[i]) * blue_scale + blue_offset


@njit(cache=True, nogil=True, fastmath=True)
def normalise(plane, scale, offset):
    """Replace each value by value * scale + offset."""
    for i in range(plane.shape[0]):
        plane[i] = plane[i] * scale + offset
