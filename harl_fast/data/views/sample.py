"""From one sample's stored bytes to all of its views and mask cells: the loader's inner loop.

All views are cut from one decode of the rectangle that they cover together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from harl_fast.data.container.checksum import sum_differs
from harl_fast.data.container.fields import MODE_JPG, MODE_RAW, MODE_YUV420, NOWHERE
from harl_fast.data.views.background import (
    LEAST_FOREGROUND,
    draw_background,
    fill_cover,
    paste,
    paste_planes,
)
from harl_fast.data.views.cells import cell_coverage, fill_integral
from harl_fast.data.views.color_cpu import PARAMS, colour_grey, colour_view, draw_colour
from harl_fast.data.views.crop import draw_view
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
from harl_fast.data.views.resize import padded, reduce_planes, write_luma, write_planes, write_view
from harl_fast.jit import njit
from harl_fast.rng import GEOMETRY, PHOTOMETRIC, stream

BAD_MASK, BAD_SUM, UNREAD = 4, 5, 6
"""Status of a sample, beside those of an image in `jpeg`: its mask is missing or of another size;
its bytes differ from those written; the file could not be read there."""
STATUS_TEXT = {
    NO_DATA: "its data lie outside the file",
    BAD_JPEG: "its JPEG data are damaged or end early",
    UNSUPPORTED: "its image is of a kind that is not read (see `preprocess.beton --help`, store)",
    BAD_MASK: "its mask is missing or has the wrong size",
    BAD_SUM: "its stored bytes do not match their checksum",
    UNREAD: "its bytes could not be read",
}

PICTURE = WINDOW + 4
"""Length of an opened picture's record: the decoded window (see `decode_planes`), pixels per chroma
sample down and across, channels, and where its planes begin in the scratch."""
_FACTOR_Y, _FACTOR_X, _CHANNELS, _BEGIN = range(WINDOW, PICTURE)
_GREY_CHROMA = np.uint16(128 << 8)
# Called by symbol name, as TurboJPEG is: a pointer of this process would forbid storing the code.
_pread = types.ExternalFunction(
    "pread", types.int64(types.int32, types.CPointer(types.uint8), types.uint64, types.int64)
)


class Stored(NamedTuple):
    """What decoding reads of open containers."""

    files: Any
    """(F,) int32 descriptors."""
    rows: Any
    """(N,) records of `index.ROW`: where each sample lies."""
    mask_size: Any
    """S of the (S, S) masks."""
    sums: Any
    """(N,) uint64 `joint_sum` of each sample, 0 where none is known, or (0,): none is compared."""


class Scratch(NamedTuple):
    """Memory to work in, see `batch.scratch_for`; the first axis counts threads."""

    stored: Any
    """Bytes of a stored image, then those of its mask."""
    planes: Any
    """Bytes: a JPEG's excerpt, then its planes."""
    levels: Any
    """Bytes: a view that will be coloured."""
    words: Any
    """uint16: the resize's."""
    floats: Any
    """float32: the colours'."""
    integral: Any
    """int32, (threads, S + 1, S + 1) of a mask, or no elements if no view's crop looks at it."""
    cover: Any
    """float32, (threads, S S) of a view, or no elements if no background is replaced."""


@njit(cache=True)
def read_bytes(file, place, into):
    """Fill ``into`` (n,) uint8 from byte ``place`` of an open file; return whether it has them."""
    done, size = 0, into.shape[0]
    while done < size:
        count = _pread(file, into[done:].ctypes, size - done, np.int64(place) + done)
        if count <= 0:
            return False
        done += count
    return True


@njit(cache=True)
def _load(sample, stored, into, size):
    """Read a sample's image, ``size`` bytes, and mask into one array; return the status."""
    row = stored.rows[sample]
    if row.mask == NOWHERE:
        return BAD_MASK
    file, image, mask = stored.files[row.file], into[:size], into[size:]
    if row.mask == row.image + np.uint64(size):  # as our writer lays them: one call for both
        found = read_bytes(file, row.image, into)
    else:
        found = read_bytes(file, row.image, image) and read_bytes(file, row.mask, mask)
    if not found:
        return UNREAD
    if stored.sums.shape[0] > 0:
        known = stored.sums[sample]
        if known != 0 and sum_differs(image, mask, known):
            return BAD_SUM
    return OK


@njit(cache=True)
def _box(seed, epoch, sample, view, size, table, integral):
    key = stream(seed, epoch, sample, view, GEOMETRY)
    return draw_view(key, size[0], size[1], table[view], integral)


@njit(cache=True)
def _union(seed, epoch, sample, size, table, integral):
    """Return (top, left, bottom, right) of the rectangle that all of a sample's views cover."""
    top, left, bottom, right = size[0], size[1], 0, 0
    for view in range(table.shape[0]):
        box = _box(seed, epoch, sample, view, size, table, integral)
        top, left = min(top, box.top), min(left, box.left)
        bottom, right = max(bottom, box.top + box.height), max(right, box.left + box.width)
    return top, left, bottom, right


@njit(cache=True)
def open_picture(decoder, mode, data, size, union, bytes_, picture):
    """Make a stored picture's pixels ready for `cut_view`; return its status.

    decoder: see `decode_planes`. mode: of `fields`. data: the stored bytes. size: (height,
    width). union: (top, left, bottom, right); what lies outside is not decoded. bytes_: one
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
    return decode_planes(decoder, data, layout, union, excerpt, planes, window)


@njit(cache=True)
def _resize_ycc(planes, picture, size, placed, side, rest, parts, grey):
    """Resize a view's luma and chroma from ``planes``, one after another in one array.

    grey: the luma alone.
    """
    rows, stride = picture[ROWS], picture[STRIDE]
    down, across = picture[_FACTOR_Y], picture[_FACTOR_X]
    luma = planes[: rows * stride].reshape(1, rows, stride)
    origin = (picture[PLANE_Y], picture[PLANE_X])
    reduce_planes(luma, 1, origin, (1, 1), size, placed, side, rest, parts[0:1])
    if grey:
        return
    if picture[_CHANNELS] == 1:
        parts[1:] = _GREY_CHROMA
        return
    rows, stride = (rows + down - 1) // down, (stride + across - 1) // across
    origin = (origin[0] // down, origin[1] // across)
    limits = ((size[0] + down - 1) // down, (size[1] + across - 1) // across)
    chroma = planes[luma.size : luma.size + 2 * rows * stride].reshape(2, rows, stride)
    reduce_planes(chroma, 1, origin, (down, across), limits, placed, side, rest, parts[1:3])


@njit(cache=True)
def _write_grey(parts, is_ycc, upright, scratch, thread, key, colours, behind, cover, out):
    """Write a view of one channel, see `cut_view`."""
    side = out.shape[0]
    if colours is None:
        write_luma(parts, is_ycc, upright, out.reshape(side, side))
        if behind is not None:
            paste(out, cover, behind)
    else:
        levels = scratch.levels[thread, : side * side]
        write_luma(parts, is_ycc, upright, levels.reshape(side, side))
        if behind is not None:
            paste(levels.reshape(side, side, 1), cover, behind)
        params = np.empty(PARAMS, np.float64)
        draw_colour(key, colours, params)
        colour_grey(levels, params, colours, scratch.floats[thread], out.reshape(-1))


@njit(cache=True)
def cut_view(mode, data, size, box, picture, scratch, thread, key, colours, behind, cover, out):
    """Write one view of an opened picture to ``out`` (S, S, 3), or its luma to (S, S, 1).

    mode, data, size, picture: of `open_picture`. box: of `draw_view`. key: the colour stream.
    colours: the view's record of `color_cpu.policy_table`, or None for uint8 pixels. behind: (S, S,
    C) uint8, what lies behind where ``cover`` says so (see `background.paste`), or None.
    """
    side, grey, words = out.shape[0], out.shape[2] == 1, scratch.words[thread]
    rows = padded(side)
    one = 3 * rows * rows
    parts = words[:one].reshape(3, rows, rows)
    upright, rest = words[one : 2 * one].reshape(3, rows, rows), words[2 * one :]
    if mode == MODE_RAW:
        interleaved = data.reshape(1, size[0], size[1] * 3)
        reduce_planes(interleaved, 3, (0, 0), (1, 1), size, box, side, rest, parts)
    elif mode == MODE_YUV420:
        _resize_ycc(data, picture, size, box, side, rest, parts, grey)
    else:
        _resize_ycc(
            scratch.planes[thread, picture[_BEGIN] :], picture, size, box, side, rest, parts, grey
        )
    is_ycc = mode != MODE_RAW
    if grey:
        _write_grey(parts, is_ycc, upright, scratch, thread, key, colours, behind, cover, out)
    elif colours is None:
        write_view(parts, is_ycc, upright, out)
        if behind is not None:
            paste(out, cover, behind)
    else:
        planes = scratch.levels[thread, : 3 * side * side].reshape(3, side, side)
        write_planes(parts, is_ycc, upright, planes)
        if behind is not None:
            paste_planes(planes, cover, behind)
        params = np.empty(PARAMS, np.float64)
        draw_colour(key, colours, params)
        colour_view(planes, params, colours, scratch.floats[thread], out)


@njit(cache=True)
def _behind(seed, epoch, sample, view, row, backgrounds, packed, mask_size, size, box, spare):
    """Return the picture behind a view and the pixels' shares that it keeps, see `paste`.

    row: the view's of `crop.geometry_table`. backgrounds: see `decode_sample`. spare: float32
    scratch for the shares: (S, S), or (0, S) if the view keeps its background.
    """
    if backgrounds is None:
        return None, None
    bank = backgrounds[view]
    side = bank.shape[1]
    cover = spare[: side * side].reshape(side, side)
    number = draw_background(seed, epoch, sample, view, row.background_p, len(bank))
    if number < 0:
        return bank[0], cover[:0]
    whole = cover[0, :1].reshape(1, 1)
    cell_coverage(packed, mask_size, size[0], size[1], box, whole)
    if whole[0, 0] < LEAST_FOREGROUND:
        return bank[0], cover[:0]
    fill_cover(packed, mask_size, size[0], size[1], box, cover)
    return bank[number], cover


@njit(cache=True)
def decode_sample(
    sample,
    row,
    seed,
    epoch,
    stored,
    table,
    colours,
    backgrounds,
    decoder,
    scratch,
    thread,
    views,
    cells,
):
    """Fill row ``row`` of each view (B, S, S, C) and its cells (B, h, w); return the status.

    stored: a `Stored`. table: of `crop.geometry_table`. colours: of `color_cpu.policy_table`, or
    None for uint8 views. backgrounds: per view a bank (K, S, S, C) uint8, or None if no view's is
    replaced. decoder: see `decode_planes`. scratch: a `Scratch`, of which part ``thread`` is used.
    If the status is not OK, the rows are left undefined.
    """
    row_of = stored.rows[sample]
    mode, size = row_of.mode, (np.int64(row_of.height), np.int64(row_of.width))
    ends = np.int64(row_of.size), np.int64(row_of.size) + stored.mask_size**2 // 8
    image, packed = scratch.stored[thread, : ends[0]], scratch.stored[thread, ends[0] : ends[1]]
    status = _load(sample, stored, scratch.stored[thread, : ends[1]], ends[0])
    if status != OK:
        return status
    integral = scratch.integral[thread]
    if integral.shape[0] > 0:
        fill_integral(packed, stored.mask_size, integral)
    union = _union(seed, epoch, sample, size, table, integral)
    picture = np.empty(PICTURE, np.int64)
    status = open_picture(decoder, mode, image, size, union, scratch.planes[thread], picture)
    if status != OK:
        return status
    for view in range(table.shape[0]):
        # Drawn again instead of kept: it takes less than a microsecond.
        box = _box(seed, epoch, sample, view, size, table, integral)
        key = stream(seed, epoch, sample, view, PHOTOMETRIC)
        own = None if colours is None else colours[view]
        out, mask_size, row_of_view = views[view][row], stored.mask_size, table[view]
        behind, cover = _behind(
            seed,
            epoch,
            sample,
            view,
            row_of_view,
            backgrounds,
            packed,
            mask_size,
            size,
            box,
            scratch.cover[thread],
        )
        cut_view(mode, image, size, box, picture, scratch, thread, key, own, behind, cover, out)
        cell_coverage(packed, mask_size, size[0], size[1], box, cells[view][row])
    return OK
