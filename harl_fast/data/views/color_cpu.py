"""The colour rules as compiled CPU code: what is drawn, and one fused pass over one view.

`draw_colour` is the one place that turns random numbers into parameters, for this kernel and for
the batched torch path of `color_device`. `colour_view` applies them to one picture on one thread.

How the time is saved: the picture is worked on in chunks of rows that stay in the first-level
cache, so an operation costs its arithmetic and no trip to memory. Only contrast needs a pass of
its own, for its mean; the pixels of that pass wait in the output array. The blur streams rows
through a ring. Inside, pixels are planar float32 in [0, 255]; no operation minds the scale.
Sums may be reordered (fastmath): all inputs are bytes, so there are neither NaN nor infinities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harl_fast.config import ViewConfig
from harl_fast.data.views import pixelops as ops
from harl_fast.jit import njit
from harl_fast.rng import PHOTOMETRIC, stream, uniform

REFERENCE_PX = 224
"""The view side that blur widths refer to."""

JITTER, FACTORS, ORDER, GREY, BLUR, SIGMA, SOLARIZE, PARAMS = 0, 1, 5, 9, 10, 11, 12, 13
"""Places in the float64 vector of a view's parameters, equal to the draws' indices: jitter (0 or
1); four factors (brightness, contrast, saturation about 1, hue shift in turns); four operation
numbers in their order; grey, blur (0 or 1); blur's sigma in pixels of the view; solarize."""

_ROW = np.dtype(
    [
        ("jitter_p", "f8"),
        ("spread", "f8", 4),  # of the factors
        *((name, "f8") for name in ("grey_p", "blur_p", "sigma_low", "sigma_high", "solarize_p")),
        ("size_px", "f8"),
        ("blur_radius", "i8"),
        *((name, "f8", 3) for name in ("mean", "std")),
    ]
)
_CONTRAST = 1
_CHUNK_PX = 1024


def blur_radius(policy: ViewConfig) -> int:
    """Return the pixels that a policy's blur reaches: 4 of its largest sigmas, within the view."""
    reach = math.ceil(4.0 * policy.blur_sigma[1] * policy.size_px / REFERENCE_PX)
    return min(max(1, reach), policy.size_px - 1)


def policy_table(
    policies: Sequence[ViewConfig], mean: Sequence[float], std: Sequence[float]
) -> npt.NDArray[Any]:
    """Return (V,) records, what `draw_colour` and `colour_view` must know of each view.

    mean, std: (3,) of [0, 1] pixels, RGB; or (1,) for views of one channel.
    """
    mean, std = (tuple(values) * (3 // len(values)) for values in (mean, std))
    rows = [
        (
            policy.jitter_p,
            (policy.brightness, policy.contrast, policy.saturation, policy.hue),
            *(policy.gray_p, policy.blur_p, *policy.blur_sigma, policy.solarize_p),
            *(policy.size_px, blur_radius(policy), mean, std),
        )
        for policy in policies
    ]
    return np.array(rows, dtype=_ROW)


@njit(cache=True, nogil=True)
def draw_colour(key, row, out):
    """Fill ``out`` (PARAMS,) float64 with one view's parameters.

    key: of `rng.stream`. row: the view's record of `policy_table`.
    """
    out[JITTER] = uniform(key, JITTER) < row.jitter_p
    for number in range(4):
        middle = 0.0 if number == 3 else 1.0
        swing = 2.0 * uniform(key, FACTORS + number) - 1.0
        out[FACTORS + number] = middle + row.spread[number] * swing
    for number in range(4):
        # An operation's place is the rank of its draw.
        place, mine = 0, uniform(key, ORDER + number)
        for other in range(4):
            theirs = uniform(key, ORDER + other)
            place += theirs < mine or (theirs == mine and other < number)
        out[ORDER + place] = number
    out[GREY] = uniform(key, GREY) < row.grey_p
    out[BLUR] = uniform(key, BLUR) < row.blur_p
    low, high = row.sigma_low, row.sigma_high
    out[SIGMA] = (low + (high - low) * uniform(key, SIGMA)) * row.size_px / REFERENCE_PX
    out[SOLARIZE] = uniform(key, SOLARIZE) < row.solarize_p


@njit(cache=True, nogil=True)
def _draw_batch(seed, epoch, samples, view, row, out):
    for sample in range(out.shape[0]):
        draw_colour(stream(seed, epoch, samples[sample], view, PHOTOMETRIC), row, out[sample])


def draw_batch(
    row: np.void, ids: npt.ArrayLike, *, seed: int, epoch: int, view: int
) -> npt.NDArray[np.float64]:
    """Return (B, PARAMS) float64: `draw_colour` for (B,) sample ids.

    row: the view's record of `policy_table`.
    """
    samples = np.ascontiguousarray(ids, dtype=np.int64)
    out = np.empty((samples.shape[0], PARAMS), dtype=np.float64)
    _draw_batch(np.uint64(seed), epoch, samples, view, row, out)
    return out


def scratch_size(size_px: int) -> int:
    """Return how many float32 `colour_view` needs as scratch for a view of this side.

    A chunk, and lines of 16 bits for the blur: two to work on, the weights, and a ring that could
    hold all rows, for the widest blur there can be. Only what the blur reaches is ever touched.
    """
    pitch = -(-9 * size_px // 32) * 32
    return 3 * max(_CHUNK_PX, size_px) + 16 + (2 + 2 * size_px) * pitch // 2


@njit(cache=True, nogil=True)
def _jitter(pixels, params, first, stop, middle):
    """Apply the operations from place ``first`` up to ``stop`` to a (3, n) chunk."""
    for place in range(first, stop):
        number = int(params[ORDER + place])
        factor = np.float32(params[FACTORS + number])
        if number == 0:
            for plane in range(3):
                ops.brightness(pixels[plane], factor)
        elif number == 1:
            for plane in range(3):
                ops.contrast(pixels[plane], factor, middle)
        elif number == 2:
            ops.saturation(pixels[0], pixels[1], pixels[2], factor)
        else:
            sectors = np.float32((6.0 * params[FACTORS + 3]) % 6.0)
            ops.hue(pixels[0], pixels[1], pixels[2], sectors)


@njit(cache=True, nogil=True)
def _before_contrast(planes, params, stop, step, kept):
    """Return the picture's mean luminance after the operations before place ``stop``.

    planes: (3, n) uint8. kept: (3 * n,) float32, receives the pixels,
    a chunk after the other; it is left alone if contrast comes first.
    """
    count = planes.shape[1]
    sums = np.zeros(3)
    if stop == 0:
        for plane in range(3):
            sums[plane] = ops.sum_bytes(planes[plane])
    else:
        for start in range(0, count, step):
            width = min(step, count - start)
            pixels = kept[3 * start : 3 * (start + width)].reshape(3, width)
            for plane in range(3):
                ops.load(planes[plane, start : start + width], pixels[plane])
            _jitter(pixels, params, 0, stop, np.float32(0))
            for plane in range(3):
                sums[plane] += ops.total(pixels[plane])
    return np.float32((0.299 * sums[0] + 0.587 * sums[1] + 0.114 * sums[2]) / count)


@njit(cache=True, nogil=True)
def _across(line, weights, reach, out):
    """Blur a line: out[i] is about line[i + reach]."""
    tap = 1
    ops.taps0(line[reach:], weights, out)
    while tap + 3 <= reach:
        a, b = line[reach - tap :], line[reach + tap :]
        c, d = line[reach - tap - 1 :], line[reach + tap + 1 :]
        e, f = line[reach - tap - 2 :], line[reach + tap + 2 :]
        g, h = line[reach - tap - 3 :], line[reach + tap + 3 :]
        ops.taps4(a, b, c, d, e, f, g, h, weights[tap:], out)
        tap += 4
    if tap + 1 <= reach:
        a, b = line[reach - tap :], line[reach + tap :]
        c, d = line[reach - tap - 1 :], line[reach + tap + 1 :]
        ops.taps2(a, b, c, d, weights[tap:], out)
        tap += 2
    if tap <= reach:
        ops.taps1(line[reach - tap :], line[reach + tap :], weights[tap:], out)


@njit(cache=True, nogil=True)
def _ring_row(ring, row, side):
    """Return the line of a row that may lie beyond the picture's border, mirrored there."""
    row = side - 1 - abs(side - 1 - abs(row))
    return ring[row % ring.shape[0]]


@njit(cache=True, nogil=True)
def _down(ring, row, side, weights, reach, out):
    """Blur row ``row`` of a picture of ``side`` rows, the last of which lie in ``ring``."""
    tap = 1
    ops.taps0(_ring_row(ring, row, side), weights, out)
    while tap + 3 <= reach:
        a, b = _ring_row(ring, row - tap, side), _ring_row(ring, row + tap, side)
        c, d = _ring_row(ring, row - tap - 1, side), _ring_row(ring, row + tap + 1, side)
        e, f = _ring_row(ring, row - tap - 2, side), _ring_row(ring, row + tap + 2, side)
        g, h = _ring_row(ring, row - tap - 3, side), _ring_row(ring, row + tap + 3, side)
        ops.taps4(a, b, c, d, e, f, g, h, weights[tap:], out)
        tap += 4
    if tap + 1 <= reach:
        a, b = _ring_row(ring, row - tap, side), _ring_row(ring, row + tap, side)
        c, d = _ring_row(ring, row - tap - 1, side), _ring_row(ring, row + tap + 1, side)
        ops.taps2(a, b, c, d, weights[tap:], out)
        tap += 2
    if tap <= reach:
        a, b = _ring_row(ring, row - tap, side), _ring_row(ring, row + tap, side)
        ops.taps1(a, b, weights[tap:], out)


@njit(cache=True, nogil=True)
def _finish(pixels, grey, invert, scale, offset, out):
    """Solarize, normalise and interleave (3, n) pixels into ``out`` (3 * n,)."""
    if invert:
        for plane in range(1 if grey else 3):
            ops.solarize(pixels[plane])
    if grey:
        ops.interleave(pixels[0], pixels[0], pixels[0], scale, offset, out)
    else:
        ops.interleave(pixels[0], pixels[1], pixels[2], scale, offset, out)


@njit(cache=True, nogil=True)
def _coloured(planes, params, place, middle, kept, pixels, start):
    """Fill ``pixels`` (3, n) with the picture from ``start`` on, jittered and made grey."""
    width = pixels.shape[1]
    for plane in range(3):
        if place > 0:
            first = 3 * start + plane * width
            ops.copy(kept[first : first + width], pixels[plane])
        else:
            ops.load(planes[plane, start : start + width], pixels[plane])
    if params[JITTER] != 0.0:
        _jitter(pixels, params, place, 4, middle)
    if params[GREY] != 0.0:
        ops.grey(pixels[0], pixels[1], pixels[2])


@njit(cache=True, nogil=True)
def _pad(pixels, first, reach, used, line):
    """Fill ``line`` with a row of each plane in 16-bit fixed point, mirrored at both ends."""
    stride = line.shape[0] // used
    side = stride - 2 * reach
    for plane in range(used):
        part = line[plane * stride : (plane + 1) * stride]
        ops.to_fixed(pixels[plane, first : first + side], part[reach : reach + side])
        for away in range(1, reach + 1):
            part[reach - away] = part[reach + away]
            part[reach + side - 1 + away] = part[reach + side - 1 - away]


@njit(cache=True, nogil=True)
def _blurred(flat, params, found, scale, offset, chunk, work, out):
    """Colour, blur and finish a view; rows stream through a ring.

    found: what `colour_view` has found out: where to start, the mean luminance, the blur's reach
    and sum of weights, grey, solarize. chunk: (3, n) whole rows. work: uint16 scratch.
    A row's planes lie one after the other in one line, so that a loop over taps runs once per row.
    """
    place, middle, reach, total, grey, invert = found
    side, step, used = out.shape[0], chunk.shape[1], 1 if grey else 3
    kept, stride = out.reshape(-1), side + 2 * reach
    rows = min(side, 2 * reach + step // side)
    length = used * stride
    pitch = -(-length // 32) * 32  # vertical taps then read whole cache lines
    line, blurred = work[:length], work[pitch : 2 * pitch]
    weights = work[2 * pitch : (3 + reach) * pitch].reshape(reach + 1, pitch)
    ops.fill_weights(params[SIGMA], total, weights)
    ring = work[(3 + reach) * pitch : (3 + reach + rows) * pitch].reshape(rows, pitch)
    fine_scale = scale / np.float32(ops.FIXED)
    done, ready = 0, 0
    for start in range(0, side * side, step):
        width = min(step, side * side - start)
        pixels = chunk.reshape(-1)[: 3 * width].reshape(3, width)
        _coloured(flat, params, place, middle, kept, pixels, start)
        for row in range(width // side):
            _pad(pixels, row * side, reach, used, line)
            _across(line, weights, reach, ring[(ready + row) % rows, : length - 2 * reach])
        ready += width // side
        while done < side and min(done + reach, side - 1) < ready:
            _down(ring, done, side, weights, reach, blurred)
            target = kept[3 * side * done : 3 * side * (done + 1)]
            second, third = (used // 2) * stride, (used - 1) * stride
            red, green = blurred[:side], blurred[second : second + side]
            blue = blurred[third : third + side]
            if invert:
                planes = chunk.reshape(-1)[: 3 * side].reshape(3, side)
                ops.from_fixed(red, planes[0])
                ops.from_fixed(green, planes[1])
                ops.from_fixed(blue, planes[2])
                _finish(planes, False, invert, scale, offset, target)
            else:
                ops.interleave(red, green, blue, fine_scale, offset, target)
            done += 1


@njit(cache=True, nogil=True)
def colour_view(planes, params, row, scratch, out):
    """Fill ``out`` (S, S, 3) float32 with one coloured and normalised view.

    planes: (3, S, S) uint8 RGB, contiguous. params: of `draw_colour`. row: the view's record of
    `policy_table`. scratch: float32, `scratch_size` long; its content does not matter. ``out``
    holds pixels of the contrast pass in between.
    """
    side = planes.shape[1]
    scratch, out = ops.borrowed(scratch), ops.borrowed(out)
    flat, kept = ops.borrowed(planes).reshape(3, -1), out.reshape(-1)
    scale, offset = np.empty(3, np.float32), np.empty(3, np.float32)
    for channel in range(3):
        scale[channel] = 1.0 / (255.0 * row.std[channel])
        offset[channel] = -row.mean[channel] / row.std[channel]
    grey, invert = params[GREY] != 0.0, params[SOLARIZE] != 0.0
    if params[JITTER] == 0.0 and not (grey or invert or params[BLUR] != 0.0):
        ops.interleave(flat[0], flat[1], flat[2], scale, offset, kept)
        return
    lines = min(side, max(1, _CHUNK_PX // side))
    step = lines * side
    chunk = scratch[: 3 * step].reshape(3, step)
    place, middle = 0, np.float32(0)
    if params[JITTER] != 0.0:
        while params[ORDER + place] != _CONTRAST:
            place += 1
        middle = _before_contrast(flat, params, place, step, kept)
    reach, total = 0, 1.0
    if params[BLUR] != 0.0:
        reach, total = ops.reach_of(params[SIGMA], row.blur_radius)
    if reach > 0:
        start = 3 * step + (-scratch.ctypes.data // 4 - 3 * step) % 16  # on a cache line
        work = scratch[start:].view(np.uint16)
        found = (place, middle, reach, total, grey, invert)
        _blurred(flat, params, found, scale, offset, chunk, work, out)
        return
    for start in range(0, side * side, step):
        width = min(step, side * side - start)
        pixels = scratch[: 3 * width].reshape(3, width)
        _coloured(flat, params, place, middle, kept, pixels, start)
        _finish(pixels, grey, invert, scale, offset, kept[3 * start : 3 * (start + width)])


@njit(cache=True, nogil=True)
def _blur_plane(plane, params, reach, total, work):
    """Blur a picture of one plane, (S * S,) float32, in place. work: uint16 scratch."""
    side = int(math.sqrt(plane.shape[0]) + 0.5)
    length = side + 2 * reach
    pitch = -(-length // 32) * 32
    line, blurred = work[:length], work[pitch : 2 * pitch]
    weights = work[2 * pitch : (3 + reach) * pitch].reshape(reach + 1, pitch)
    ops.fill_weights(params[SIGMA], total, weights)
    rows = work[(3 + reach) * pitch : (3 + reach + side) * pitch].reshape(side, pitch)
    for row in range(side):
        _pad(plane.reshape(1, -1), row * side, reach, 1, line)
        _across(line, weights, reach, rows[row, :side])
    for row in range(side):
        _down(rows, row, side, weights, reach, blurred)
        ops.from_fixed(blurred[:side], plane[row * side : (row + 1) * side])


@njit(cache=True, nogil=True)
def colour_grey(levels, params, row, scratch, out):
    """Fill ``out`` (S * S,) float32 with one view of one channel, coloured and normalised.

    levels: (S * S,) uint8. The rest is that of `colour_view`. Of the jitter brightness and contrast
    are left; saturation, hue and the dropping of colour do nothing to a grey.
    """
    scratch, out = ops.borrowed(scratch), ops.borrowed(out)
    count = out.shape[0]
    ops.load(levels, out)
    for place in range(4 if params[JITTER] != 0.0 else 0):
        number = int(params[ORDER + place])
        factor = np.float32(params[FACTORS + number])
        if number == 0:
            ops.brightness(out, factor)
        elif number == _CONTRAST:
            total = 0.0
            for start in range(0, count, _CHUNK_PX):
                total += ops.total(out[start : start + _CHUNK_PX])
            ops.contrast(out, factor, np.float32(total / count))
    if params[BLUR] != 0.0:
        reach, total = ops.reach_of(params[SIGMA], row.blur_radius)
        if reach > 0:
            start = -scratch.ctypes.data // 4 % 16  # on a cache line
            _blur_plane(out, params, reach, total, scratch[start:].view(np.uint16))
    if params[SOLARIZE] != 0.0:
        ops.solarize(out)
    scale, offset = 1.0 / (255.0 * row.std[0]), -row.mean[0] / row.std[0]
    ops.normalise(out, np.float32(scale), np.float32(offset))
