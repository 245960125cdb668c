"""From one sample's stored bytes to all of its views and mask cells: the loader's inner loop.

All views are cut from one decode of the rectangle that they cover together.
"""

from __future__ import annotations

import numpy as np

from harl_fast.data.container.fields import MODE_JPG, MODE_RAW, MODE_YUV420
from harl_fast.data.views.color_cpu import PARAMS, colour_view, draw_colour
from harl_fast.data.views.crop import cell_coverage, draw_view, fill_integral
from harl_fast.data.views.jpeg import (
    BAD_JPEG,
    NO_DATA,
    OK,
    PLANE_X,
    PLANE_Y,
    ROWS,
    STRIDE,
    UNSUPPORTED,
    WINDOW,
    decode_planes,
    excerpt_size,
    parse_jpeg,
)
from harl_fast.data.views.jpegheader import CHANNELS, FACTOR_X, FACTOR_Y, HEIGHT, LAYOUT, WIDTH
from harl_fast.data.views.resize import padded, reduce_planes, write_planes, write_view
from harl_fast.jit import njit
from harl_fast.rng import GEOMETRY, PHOTOMETRIC, stream

PICTURE = WINDOW + 4
_FACTOR_Y, _FACTOR_X, _CHANNELS, _BEGIN = range(WINDOW, PICTURE)
_GREY_CHROMA = np.uint16(128 << 8)


@njit(cache=True)
def place_views(seed, epoch, sample, height, width, table, integral, boxes):  # type: ignore[no-untyped-def]
    """Fill ``boxes`` (V, 6) int64: top, left, height, width, flip, vflip of each view."""
    for view in range(boxes.shape[0]):
        key = stream(seed, epoch, sample, view, GEOMETRY)
        top, left, box_h, box_w, flip, vflip = draw_view(key, height, width, table[view], integral)
        boxes[view, 0], boxes[view, 1], boxes[view, 2], boxes[view, 3] = top, left, box_h, box_w
        boxes[view, 4], boxes[view, 5] = flip, vflip


@njit(cache=True)
def _union(boxes):  # type: ignore[no-untyped-def]
    top, left, bottom, right = boxes[0, 0], boxes[0, 1], np.int64(0), np.int64(0)
    for view in range(boxes.shape[0]):
        top, left = min(top, boxes[view, 0]), min(left, boxes[view, 1])
        bottom = max(bottom, boxes[view, 0] + boxes[view, 2])
        right = max(right, boxes[view, 1] + boxes[view, 3])
    return top, left, bottom, right


@njit(cache=True)
def open_picture(decoder, mode, data, size, boxes, bytes_, picture):  # type: ignore[no-untyped-def]
    """Make a stored picture's pixels ready for `cut_view`; return its status.

    decoder: see `decode_planes`. mode: of `fields`. data: the stored bytes. size: (height,
    width). boxes: of `place_views`; what lies outside all of them is not decoded. bytes_: one
    thread's scratch, receives the planes of a JPEG. picture: (`PICTURE`,) int64, receives where
    the planes lie.
    """
    height, width = size
    picture[:] = 0
    picture[ROWS], picture[STRIDE] = height, width
    if mode == MODE_RAW:
        return OK if data.shape[0] == height * width * 3 else NO_DATA
    if mode == MODE_YUV420:
        picture[_FACTOR_Y], picture[_FACTOR_X], picture[_CHANNELS] = 2, 2, 3
        whole = height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2)
        return OK if data.shape[0] == whole else NO_DATA
    if mode != MODE_JPG:
        return UNSUPPORTED
    layout = np.empty(LAYOUT, np.int64)
    status = parse_jpeg(data, layout)
    if status != OK:
        return status
    if layout[HEIGHT] != height or layout[WIDTH] != width:
        return BAD_JPEG
    begin = excerpt_size(data.shape[0])
    picture[_FACTOR_Y], picture[_FACTOR_X] = layout[FACTOR_Y], layout[FACTOR_X]
    picture[_CHANNELS], picture[_BEGIN] = layout[CHANNELS], begin
    excerpt, planes, window = bytes_[:begin], bytes_[begin:], picture[:WINDOW]
    return decode_planes(decoder, data, layout, _union(boxes), excerpt, planes, window)


@njit(cache=True)
def _resize_ycc(planes, picture, size, placed, side, rest, parts):  # type: ignore[no-untyped-def]
    """Resize a view's luma and chroma from ``planes``, one after another in one array."""
    rows, stride = picture[ROWS], picture[STRIDE]
    down, across = picture[_FACTOR_Y], picture[_FACTOR_X]
    luma = planes[: rows * stride].reshape(1, rows, stride)
    origin = (picture[PLANE_Y], picture[PLANE_X])
    reduce_planes(luma, 1, origin, (1, 1), size, placed, side, rest, parts[0:1])
    if picture[_CHANNELS] == 1:
        parts[1:] = _GREY_CHROMA
        return
    rows, stride = (rows + down - 1) // down, (stride + across - 1) // across
    origin = (origin[0] // down, origin[1] // across)
    limits = ((size[0] + down - 1) // down, (size[1] + across - 1) // across)
    chroma = planes[luma.size : luma.size + 2 * rows * stride].reshape(2, rows, stride)
    reduce_planes(chroma, 1, origin, (down, across), limits, placed, side, rest, parts[1:3])


@njit(cache=True)
def cut_view(mode, data, size, box, picture, scratch, key, colours, out):  # type: ignore[no-untyped-def]
    """Write one view of an opened picture to ``out`` (S, S, 3).

    mode, data, size, picture: of `open_picture`. box: the view's row of `place_views`. scratch:
    (bytes, levels, words, floats) of one thread. key: the colour stream. colours: the view's row
    of `colour.policy_table`, or None for uint8 pixels.
    """
    bytes_, levels, words, floats = scratch
    side = out.shape[0]
    rows = padded(side)
    one = 3 * rows * rows
    parts = words[:one].reshape(3, rows, rows)
    upright, rest = words[one : 2 * one].reshape(3, rows, rows), words[2 * one :]
    placed = (box[0], box[1], box[2], box[3], box[4] != 0, box[5] != 0)
    if mode == MODE_RAW:
        interleaved = data.reshape(1, size[0], size[1] * 3)
        reduce_planes(interleaved, 3, (0, 0), (1, 1), size, placed, side, rest, parts)
    elif mode == MODE_YUV420:
        _resize_ycc(data, picture, size, placed, side, rest, parts)
    else:
        _resize_ycc(bytes_[picture[_BEGIN] :], picture, size, placed, side, rest, parts)
    is_ycc = mode != MODE_RAW
    if colours is None:
        write_view(parts, is_ycc, upright, out)
    else:
        planes = levels[: 3 * side * side].reshape(3, side, side)
        write_planes(parts, is_ycc, upright, planes)
        params = np.empty(PARAMS, np.float64)
        draw_colour(key, colours, params)
        colour_view(planes, params, colours, floats, out)


@njit(cache=True)
def cut_cells(packed, mask_size, size, box, out):  # type: ignore[no-untyped-def]
    """Write one view's cells to ``out`` (h, w) float32."""
    placed = (box[0], box[1], box[2], box[3], box[4] != 0, box[5] != 0)
    cell_coverage(packed, mask_size, size[0], size[1], placed, out)


@njit(cache=True)
def place_sample(control, sample, size, table, mask, boxes, keys):  # type: ignore[no-untyped-def]
    """Draw a sample's boxes and the keys of its colours.

    control: (seed, epoch). mask: (packed bits, side, integral or an empty array when no view's
    crop looks at the mask).
    """
    packed, mask_size, integral = mask
    if integral.shape[0] > 0:
        fill_integral(packed, mask_size, integral)
    place_views(control[0], control[1], sample, size[0], size[1], table, integral, boxes)
    for view in range(boxes.shape[0]):
        keys[view] = stream(control[0], control[1], sample, view, PHOTOMETRIC)
