"""The antialiased bilinear resize of a crop box from planes of any chroma resolution, in integers.

The rule is Pillow's and torchvision's (``antialias=True``): a triangle filter whose support grows
with the reduction. Chroma planes of half resolution are never enlarged: libjpeg's triangle
upsampling is linear, so its weights are folded into those of the resize. Values are 8.8 fixed
point in 16 bits and weights are 0.16; every product keeps its upper half, which is one instruction
for 16 or 32 values. All of it is integer arithmetic: pixels are the same on every machine.

Both passes run along contiguous memory: rows are reduced first, the result is transposed, columns
are reduced, and the transposition is undone while colours are converted and written.
"""

from __future__ import annotations

import math

import numpy as np

from harl_fast.jit import njit

LANES = 8
"""Sides are padded to a multiple of this, so that whole words are transposed."""
_EVEN, _ODD = np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFF0000FFFF0000)
_FIRST, _LAST = np.uint64(0x00000000FFFFFFFF), np.uint64(0xFFFFFFFF00000000)
_16, _32 = np.uint64(16), np.uint64(32)
_ONE = 65535
_BIAS = np.uint16(128)
"""Half a level in 8.8 fixed point: the last step cuts off."""


@njit(cache=True)
def padded(side):
    """Return ``side`` rounded up to whole transposition blocks."""
    return (side + LANES - 1) // LANES * LANES


@njit(cache=True)
def max_taps(box_side, out_side):
    """Return how many source pixels one output pixel can need."""
    return 2 * math.ceil(max(box_side / out_side, 1.0)) + 3


@njit(cache=True)
def _spread(position, share, factor, limit, base, line):
    """Add a full-resolution pixel's share to the plane's pixels it was interpolated from."""
    if factor == 1:
        line[position - base] += share
        return
    # libjpeg's "fancy" upsampling: 3/4 of the nearer sample, 1/4 of the farther (jdsample.c).
    near = position >> 1
    far = near + 1 if position & 1 else near - 1
    line[near - base] += 0.75 * share
    line[min(max(far, 0), limit - 1) - base] += 0.25 * share


@njit(cache=True)
def axis_weights(start, box_side, mirrored, factor, limit, first, count, weights):
    """Fill each output pixel's first plane pixel, how many it takes, and their weights.

    start, box_side: the box in full-resolution pixels. mirrored: whether the last output pixel
    comes first. factor: 1, or 2 for a plane of half resolution. limit: the plane's length. first,
    count: (out side,) int32. weights: (out side, `max_taps`) uint16 in units of 2^-16; each row
    sums to 65535.
    """
    out_side = first.shape[0]
    scale = box_side / out_side
    support = max(scale, 1.0)
    taps = weights.shape[1]
    line, triangle = np.empty(taps, np.float64), np.empty(taps, np.float64)
    slope = 1.0 / support
    for place in range(out_side):
        index = out_side - 1 - place if mirrored else place
        middle = (place + 0.5) * scale
        low = max(0, int(middle - support + 0.5))
        high = min(box_side, int(middle + support + 0.5))
        total = 0.0
        for tap in range(high - low):
            triangle[tap] = max(0.0, 1.0 - abs(low + tap + 0.5 - middle) * slope)
            total += triangle[tap]
        base = start + low if factor == 1 else max(0, ((start + low) >> 1) - 1)
        line[:] = 0.0
        for tap in range(high - low):
            _spread(start + low + tap, triangle[tap] / total, factor, limit, base, line)
        begin, end = 0, taps
        while line[begin] == 0.0:
            begin += 1
        while line[end - 1] == 0.0:
            end -= 1
        first[index], count[index] = base + begin, end - begin
        given, largest = 0, 0
        for tap in range(end - begin):
            weight = math.floor(line[begin + tap] * _ONE + 0.5)
            weights[index, tap] = weight
            given += weight
            if weights[index, tap] > weights[index, largest]:
                largest = tap
        # A constant image must stay constant: the rounding left over goes to the largest weight.
        weights[index, largest] += _ONE - given


@njit(cache=True, inline="always")
def _upper(value, weight):
    return np.uint16((np.uint32(value) * np.uint32(weight)) >> np.uint32(16))


@njit(cache=True)
def _start_value(count):
    # Each product is cut off below 1/256 level: half of that is given back for every tap, as far
    # as white cannot overflow (reductions beyond 120 to 1 end up to a level too dark).
    return np.uint16(min(count >> 1, 120))


@njit(cache=True)
def reduce_rows(plane, left, width, first, count, weights, strip):
    """Fill ``strip`` (out rows, >= width) uint16 from ``width`` bytes of each row from ``left``.

    plane: (rows, row bytes) uint8; ``first`` counts its rows.
    """
    eight = np.uint16(8)
    for row in range(first.shape[0]):
        out = strip[row, :width]
        taps = count[row]
        begin = _start_value(taps)
        top = first[row]
        if taps == 1:
            a = plane[top, left : left + width]
            for x in range(width):
                out[x] = np.uint16(a[x]) << eight
            continue
        wa, wb = weights[row, 0], weights[row, 1]
        a, b = plane[top, left : left + width], plane[top + 1, left : left + width]
        for x in range(width):
            out[x] = (
                begin + _upper(np.uint16(a[x]) << eight, wa) + _upper(np.uint16(b[x]) << eight, wb)
            )
        tap = 2
        while tap + 1 < taps:
            wa, wb = weights[row, tap], weights[row, tap + 1]
            a = plane[top + tap, left : left + width]
            b = plane[top + tap + 1, left : left + width]
            for x in range(width):
                out[x] += _upper(np.uint16(a[x]) << eight, wa) + _upper(
                    np.uint16(b[x]) << eight, wb
                )
            tap += 2
        if tap < taps:
            wa = weights[row, tap]
            a = plane[top + tap, left : left + width]
            for x in range(width):
                out[x] += _upper(np.uint16(a[x]) << eight, wa)


@njit(cache=True)
def transpose(strip, width, turned):
    """Fill ``turned`` (>= width, rows) from ``strip`` (rows, >= width), both padded to blocks.

    Four by four values at a time in 64-bit words: a third less time than one by one. (Little-endian
    machines, as all that PyTorch runs on.)
    """
    source, target = strip.view(np.uint64), turned.view(np.uint64)
    for y in range(turned.shape[1] // 4):
        row0, row1, row2, row3 = (
            source[4 * y],
            source[4 * y + 1],
            source[4 * y + 2],
            source[4 * y + 3],
        )
        for x in range((width + 3) // 4):
            a, b, c, d = row0[x], row1[x], row2[x], row3[x]
            # Of two rows the even and the odd columns, then of both pairs the same column.
            ab_even, ab_odd = (a & _EVEN) | ((b & _EVEN) << _16), ((a >> _16) & _EVEN) | (b & _ODD)
            cd_even, cd_odd = (c & _EVEN) | ((d & _EVEN) << _16), ((c >> _16) & _EVEN) | (d & _ODD)
            target[4 * x, y] = (ab_even & _FIRST) | (cd_even << _32)
            target[4 * x + 1, y] = (ab_odd & _FIRST) | (cd_odd << _32)
            target[4 * x + 2, y] = (ab_even >> _32) | (cd_even & _LAST)
            target[4 * x + 3, y] = (ab_odd >> _32) | (cd_odd & _LAST)


@njit(cache=True)
def reduce_columns(turned, origin, step, first, count, weights, out):
    """Fill ``out`` (out columns, rows) uint16 in 8.8 from ``turned``, one line per source column.

    Column c of the plane lies at line (c - origin) * step; interleaved channels have step 3.
    """
    rows = turned.shape[1]
    for column in range(first.shape[0]):
        to = out[column]
        taps = count[column]
        begin = _start_value(taps)
        place = (first[column] - origin) * step
        if taps == 1:
            a = turned[place]
            for y in range(rows):
                to[y] = a[y]
            continue
        wa, wb = weights[column, 0], weights[column, 1]
        a, b = turned[place], turned[place + step]
        for y in range(rows):
            to[y] = begin + _upper(a[y], wa) + _upper(b[y], wb)
        tap = 2
        while tap + 1 < taps:
            wa, wb = weights[column, tap], weights[column, tap + 1]
            a, b = turned[place + tap * step], turned[place + (tap + 1) * step]
            for y in range(rows):
                to[y] += _upper(a[y], wa) + _upper(b[y], wb)
            tap += 2
        if tap < taps:
            wa = weights[column, tap]
            a = turned[place + tap * step]
            for y in range(rows):
                to[y] += _upper(a[y], wa)


# JFIF (ITU-T T.871), full-range YCbCr to RGB: R = Y + 1.402 (Cr - 128), B = Y + 1.772 (Cb - 128),
# G = Y - 0.344136 (Cb - 128) - 0.714136 (Cr - 128). In unsigned 16-bit words with 6 fractional
# bits: coefficients in 2^-18, the offsets gathered, half a level and half of what each product cuts
# off added. Wider or signed arithmetic takes twice as long.
_RED_CR, _RED_OFFSET = np.uint16(22970), np.uint16(11453)
_BLUE_CB, _BLUE_OFFSET = np.uint16(29032), np.uint16(14484)
_GREEN_CB, _GREEN_CR, _GREEN_OFFSET = np.uint16(5638), np.uint16(11700), np.uint16(8700)
_TWO, _SIX, _TOP = np.uint16(2), np.uint16(6), np.uint16(255)


@njit(cache=True, inline="always")
def _above(value, floor):
    """Return the level of ``value - floor``, in 6 fractional bits, between black and white."""
    return np.uint8(min(np.uint16(np.uint16(max(value, floor) - floor) >> _SIX), _TOP))


@njit(cache=True, inline="always")
def _rgb(luma, blue, red):
    y = np.uint16(luma >> _TWO)
    lost = np.uint16(_upper(blue, _GREEN_CB) + _upper(red, _GREEN_CR))
    return (
        _above(np.uint16(y + _upper(red, _RED_CR)), _RED_OFFSET),
        _above(np.uint16(y + _GREEN_OFFSET), lost),
        _above(np.uint16(y + _upper(blue, _BLUE_CB)), _BLUE_OFFSET),
    )


@njit(cache=True, inline="always")
def _rounded(value):
    # White plus what the passes give back plus half a level stays below 2^16.
    return np.uint8(np.uint16(value + _BIAS) >> np.uint16(8))


@njit(cache=True)
def ycc_to_rgb(luma, blue, red, out):
    """Convert a row of (N,) uint16 YCbCr in 8.8 to (3 N,) uint8 RGB."""
    for i in range(luma.shape[0]):
        out[3 * i], out[3 * i + 1], out[3 * i + 2] = _rgb(luma[i], blue[i], red[i])


@njit(cache=True)
def rgb_to_rgb(red, green, blue, out):
    """Round a row of (N,) uint16 RGB in 8.8 to (3 N,) uint8."""
    for i in range(red.shape[0]):
        out[3 * i] = _rounded(red[i])
        out[3 * i + 1] = _rounded(green[i])
        out[3 * i + 2] = _rounded(blue[i])


@njit(cache=True)
def round_row(values, out):
    """Round a row of (N,) uint16 in 8.8 to (N,) uint8."""
    for i in range(values.shape[0]):
        out[i] = _rounded(values[i])


# BT.601 (and JFIF's Y), in 2^-16; they add up to one.
_RED_SHARE, _GREEN_SHARE, _BLUE_SHARE = np.uint32(19595), np.uint32(38470), np.uint32(7471)


@njit(cache=True)
def rgb_to_luma(red, green, blue, out):
    """Turn a row of (N,) uint16 RGB in 8.8 into (N,) uint8 luma."""
    for i in range(red.shape[0]):
        luma = np.uint32(red[i]) * _RED_SHARE + np.uint32(green[i]) * _GREEN_SHARE
        luma = np.uint32(luma + np.uint32(blue[i]) * _BLUE_SHARE)
        out[i] = _rounded(np.uint16(luma >> np.uint32(16)))


@njit(cache=True)
def ycc_to_planes(luma, blue, red, r, g, b):
    """Convert a row of (N,) uint16 YCbCr in 8.8 to three rows of uint8."""
    for i in range(luma.shape[0]):
        r[i], g[i], b[i] = _rgb(luma[i], blue[i], red[i])


@njit(cache=True)
def rgb_to_planes(red, green, blue, r, g, b):
    """Round a row of (N,) uint16 RGB in 8.8 to three rows of uint8."""
    for i in range(red.shape[0]):
        r[i], g[i], b[i] = _rounded(red[i]), _rounded(green[i]), _rounded(blue[i])


@njit(cache=True)
def words_size(largest_side, out_side, step):
    """Return how many uint16 words `reduce_planes` needs as scratch."""
    return 2 * padded(out_side) * padded(largest_side * step)


@njit(cache=True)
def reduce_planes(planes, step, origin, factors, limits, placed, side, words, parts):
    """Resize a box of planes: fill ``parts`` (N * step, padded S, padded S) uint16, by columns.

    planes: (N, rows, columns * step) uint8 with ``step`` interleaved channels, whose first row and
    column are the picture's plane pixel ``origin`` (y, x). factors: picture pixels per plane pixel,
    down and across. limits: the whole plane's height and width in its own pixels. placed: a view as
    `crop.draw_view` returns it. side: S. words: (`words_size`,) uint16 scratch. parts: uint16; no
    slices of it, since numba would take their lines for scattered memory.
    """
    top, left, box_h, box_w, flip, vflip = placed
    rows = parts.shape[2]
    first, count = np.empty(side, np.int32), np.empty(side, np.int32)
    weights = np.empty((side, max_taps(box_h, side)), np.uint16)
    axis_weights(top, box_h, vflip, factors[0], limits[0], first, count, weights)
    first_x, count_x = np.empty(side, np.int32), np.empty(side, np.int32)
    weights_x = np.empty((side, max_taps(box_w, side)), np.uint16)
    axis_weights(left, box_w, flip, factors[1], limits[1], first_x, count_x, weights_x)
    begin, end = first_x[0], np.int32(0)
    for column in range(side):
        begin = min(begin, first_x[column])
        end = max(end, first_x[column] + count_x[column])
        first[column] -= np.int32(origin[0])
    width = (end - begin) * step
    columns = padded(width)
    strip = words[: rows * columns].reshape(rows, columns)
    turned = words[rows * columns : 2 * rows * columns].reshape(columns, rows)
    for number in range(planes.shape[0]):
        offset = (begin - origin[1]) * step
        reduce_rows(planes[number], offset, width, first, count, weights, strip)
        transpose(strip, width, turned)
        for channel in range(step):
            part = parts[number * step + channel]
            reduce_columns(turned[channel:], begin, step, first_x, count_x, weights_x, part)


@njit(cache=True)
def write_view(parts, is_ycc, upright, out):
    """Turn, convert and write a view: ``out`` (S, S, 3) uint8 RGB.

    parts: (3, padded S, padded S) uint16 in 8.8 from `reduce_planes`. upright: as ``parts``,
    scratch.
    """
    side = out.shape[0]
    for channel in range(3):
        transpose(parts[channel], side, upright[channel])
    for row in range(side):
        a, b, c = upright[0, row, :side], upright[1, row, :side], upright[2, row, :side]
        if is_ycc:
            ycc_to_rgb(a, b, c, out[row].reshape(-1))
        else:
            rgb_to_rgb(a, b, c, out[row].reshape(-1))


@njit(cache=True)
def write_planes(parts, is_ycc, upright, out):
    """As `write_view`, for ``out`` (3, S, S)."""
    side = out.shape[1]
    for channel in range(3):
        transpose(parts[channel], side, upright[channel])
    for row in range(side):
        a, b, c = upright[0, row, :side], upright[1, row, :side], upright[2, row, :side]
        if is_ycc:
            ycc_to_planes(a, b, c, out[0, row], out[1, row], out[2, row])
        else:
            rgb_to_planes(a, b, c, out[0, row], out[1, row], out[2, row])


@njit(cache=True)
def write_luma(parts, is_ycc, upright, out):
    """As `write_view`, for the luma alone: ``out`` (S, S). Of YCbCr it is the first part."""
    side = out.shape[0]
    for channel in range(1 if is_ycc else 3):
        transpose(parts[channel], side, upright[channel])
    for row in range(side):
        a, b, c = upright[0, row, :side], upright[1, row, :side], upright[2, row, :side]
        if is_ycc:
            round_row(a, out[row])
        else:
            rgb_to_luma(a, b, c, out[row])
