"""Baseline JPEGs to YCbCr planes of no more of the picture than is needed, through TurboJPEG.

Entropy decoding is most of a JPEG's cost and cannot start just anywhere, except at restart markers.
The converter sets one every few blocks, so a rectangle of a picture is a list of byte ranges: cut
out, their markers renumbered, behind the original header with a smaller size, they are a small
valid JPEG of that rectangle, with the very same coefficients. Planes are taken before chroma
enlargement and colour conversion, which then happen for output pixels only.

Any other baseline JPEG is decoded whole, and so is one whose markers are not those expected: what
is damaged and what is merely unusual (an application segment before the end, say) is for libjpeg to
tell. Its verdict is always heeded: FFCV's own decoder ignores it and passes on whatever the buffer
held before.

Buffers are sized by our own reading of a header and written to by libjpeg after its own. A file may
be made so that two readers see two pictures in it. So `parse_jpeg` accepts only headers that leave
no room for a second reading, TurboJPEG's reading is compared with ours before every decode, and
each decode is told how large its output may be.
"""

from __future__ import annotations

import ffcv._libffcv
import llvmlite.binding
import numpy as np
from numba import types

from harl_fast.data.views.jpegheader import (
    BROKEN,
    CHANNELS,
    FACTOR_X,
    FACTOR_Y,
    HEIGHT,
    INTERVAL,
    LAYOUT,
    READ,
    SCAN_AT,
    SIZE_AT,
    WIDTH,
    read_header,
)
from harl_fast.jit import njit

OK, NO_DATA, BAD_JPEG, UNSUPPORTED = 0, 1, 2, 3
"""Status of an image: fine; its bytes lie outside the file; damaged; a kind that is not read."""
ANOTHER_SIZE = 1
"""Of `decode_pixels`: TurboJPEG finds another picture in the file than its caller."""

# TurboJPEG is what libffcv is linked with. Called by symbol name, not through ctypes: a pointer of
# this process would forbid numba's cache.
llvmlite.binding.load_library_permanently(ffcv._libffcv.__file__)
_bytes = types.CPointer(types.uint8)
_number = types.CPointer(types.int32)
_init = types.ExternalFunction("tjInitDecompress", types.uintp())
_destroy = types.ExternalFunction("tjDestroy", types.int32(types.uintp))
_to_header = types.ExternalFunction(
    "tjDecompressHeader3", types.int32(types.uintp, _bytes, types.uint64, *(_number,) * 4)
)
_last_error = types.ExternalFunction("tjGetErrorStr", types.uintp())
_to_planes = types.ExternalFunction(
    "tjDecompressToYUVPlanes",
    types.int32(
        types.uintp,
        _bytes,
        types.uint64,
        types.CPointer(types.uintp),
        types.int32,
        _number,
        types.int32,
        types.int32,
    ),
)
_to_pixels = types.ExternalFunction(
    "tjDecompress2",
    types.int32(
        types.uintp, _bytes, types.uint64, _bytes, *(types.int32,) * 3, types.int32, types.int32
    ),
)
# From the C library: numba's own loops over bytes are 5 to 10 times slower at these two.
memchr = types.ExternalFunction("memchr", types.uintp(_bytes, types.int32, types.uintp))
memcpy = types.ExternalFunction("memcpy", types.uintp(_bytes, _bytes, types.uintp))

_RGB, GREY = 0, 6
"""TurboJPEG's pixel formats TJPF_RGB and TJPF_GRAY."""
_STOP_ON_WARNING = 8192
"""TJFLAG_STOPONWARNING: what is damaged is not decoded to its end."""
_TJ_444, _TJ_422, _TJ_420, _TJ_GRAY, _TJ_440 = range(5)
_TJ_YCBCR, _TJ_GREY_COLOURS = 1, 2
"""Samplings (TJSAMP_*) and colour spaces (TJCS_*) of TurboJPEG."""

PLANE_Y, PLANE_X, STRIDE, ROWS = range(4)
WINDOW = 4
"""Length of a `decode_planes` window: the first pixel row and column, the luma plane's size."""
_MARGIN = 2
"""Pixels around a box that the interpolation of its chroma reaches."""


@njit(cache=True)
def open_decoder():
    """Return a TurboJPEG decompressor for one thread, to be given to `close_decoder`."""
    return _init()


@njit(cache=True)
def close_decoder(decoder):
    """Free a decompressor."""
    _destroy(decoder)


@njit(cache=True)
def parse_jpeg(data, layout):
    """Fill ``layout`` (`LAYOUT`,) int64 from JPEG bytes (N,) uint8; return OK or what is wrong.

    What is read, and how strictly: see `jpegheader`.
    """
    reason = read_header(data, layout)
    if reason == READ:
        return OK
    return BAD_JPEG if reason <= BROKEN else UNSUPPORTED


@njit(cache=True)
def _turbo_header(decoder, data, length, found):
    """Fill ``found`` (4,) int32 with TurboJPEG's width, height, sampling and colour space."""
    found[:] = -1
    return _to_header(
        decoder,
        data.ctypes,
        length,
        found.ctypes,
        found[1:].ctypes,
        found[2:].ctypes,
        found[3:].ctypes,
    )


@njit(cache=True)
def _is_read_alike(decoder, data, length, layout, height, width):
    """Return whether TurboJPEG finds a picture of this size with the layout's colours.

    decoder: (1,) uintp, replaced if it finds something else: TurboJPEG 2.1 leaves it within the
    header that it failed to read.
    """
    sampling, colours = _TJ_GRAY, _TJ_GREY_COLOURS
    if layout[CHANNELS] == 3:
        colours = _TJ_YCBCR
        if layout[FACTOR_X] == 2:
            sampling = _TJ_420 if layout[FACTOR_Y] == 2 else _TJ_422
        else:
            sampling = _TJ_440 if layout[FACTOR_Y] == 2 else _TJ_444
    found = np.empty(4, np.int32)
    code = _turbo_header(decoder[0], data, length, found)
    if (
        code == 0
        and found[0] == width
        and found[1] == height
        and found[2] == sampling
        and found[3] == colours
    ):
        return True
    _destroy(decoder[0])
    decoder[0] = _init()
    return False


@njit(cache=True)
def _find_segments(data, at, starts):
    """Fill ``starts`` with where each restart segment begins and, last, where the scan ends.

    Returns whether the markers are those expected, in their order.
    """
    count = starts.shape[0] - 1
    starts[0] = at
    found, size = 0, data.shape[0]
    base = np.uintp(data.ctypes.data)
    while at + 1 < size:
        place = memchr(data[at:].ctypes, 0xFF, size - 1 - at)
        if place == 0:
            return False
        at = np.int64(place - base)
        marker = data[at + 1]
        if marker != 0 and marker != 0xFF:  # neither a stuffed byte nor a fill byte
            found += 1
            if found == count:
                starts[count] = at
                return marker == 0xD9
            if marker != 0xD0 + ((found - 1) & 7):
                return False
            starts[found] = at + 2
        at += 1 if marker == 0xFF else 2
    return False


@njit(cache=True)
def _cut_out(data, layout, starts, area, excerpt):
    """Write the JPEG of some restart segments to ``excerpt``; return its length in bytes.

    area: segments per picture row, first and past-the-last row, first and past-the-last segment of
    each row, and the excerpt's height and width in pixels.
    """
    across, row0, row1, column0, column1, height, width = area
    length = layout[SCAN_AT]
    excerpt[:length] = data[:length]
    at = layout[SIZE_AT]
    excerpt[at], excerpt[at + 1] = height >> 8, height & 255
    excerpt[at + 2], excerpt[at + 3] = width >> 8, width & 255
    number = 0
    for row in range(row0, row1):
        for segment in range(row * across + column0, row * across + column1):
            if number:
                excerpt[length], excerpt[length + 1] = 0xFF, 0xD0 + ((number - 1) & 7)
                length += 2
            last = segment + 2 == starts.shape[0]
            begin, end = starts[segment], starts[segment + 1] - (0 if last else 2)
            memcpy(excerpt[length:].ctypes, data[begin:].ctypes, end - begin)
            length += end - begin
            number += 1
    excerpt[length], excerpt[length + 1] = 0xFF, 0xD9
    return length + 2


@njit(cache=True)
def excerpt_size(largest_jpeg):
    """Return how many bytes an excerpt of a JPEG of so many bytes can take."""
    return largest_jpeg + 64


@njit(cache=True)
def planes_size(height, width):
    """Return how many bytes the planes of a picture can take (chroma at full resolution)."""
    return 3 * ((height + 15) // 16 * 16) * ((width + 15) // 16 * 16)


@njit(cache=True)
def _segments_across(layout):
    """Return the restart segments of a row of MCUs, or 0 if rows are not cut evenly."""
    side = 8 * layout[FACTOR_X]
    mcus = (layout[WIDTH] + side - 1) // side
    if layout[INTERVAL] == 0 or mcus % layout[INTERVAL] != 0:
        return 0
    return mcus // layout[INTERVAL]


@njit(cache=True)
def decode_planes(decoder, data, layout, union, excerpt, planes, window):
    """Decode the rectangle ``union`` into ``planes``; return OK or BAD_JPEG.

    decoder: (1,) uintp from `open_decoder`, replaced by another if need be. data, layout: see
    `parse_jpeg`. union: (top, left, bottom, right) in pixels. excerpt: (`excerpt_size`,) uint8
    scratch. planes: (`planes_size`,) uint8, receives luma and chroma one after another; window:
    (`WINDOW`,) int64, receives where they lie: chroma has STRIDE / FACTOR_X by ROWS / FACTOR_Y
    bytes.
    """
    height, width = layout[HEIGHT], layout[WIDTH]
    mcu_h, mcu_w = 8 * layout[FACTOR_Y], 8 * layout[FACTOR_X]
    rows = (height + mcu_h - 1) // mcu_h
    across = _segments_across(layout)
    source, length = data, data.shape[0]
    window[PLANE_Y], window[PLANE_X] = 0, 0
    window[ROWS] = rows * mcu_h
    window[STRIDE] = (width + mcu_w - 1) // mcu_w * mcu_w
    if 2 * rows * across > length:
        across = 0  # a marker takes two bytes: they are not all there
    starts = np.empty(rows * across + 1, np.int64)
    if across > 0 and _find_segments(data, layout[SCAN_AT], starts):
        segment_w = layout[INTERVAL] * mcu_w
        row0 = max(union[0] - _MARGIN, 0) // mcu_h
        row1 = min((union[2] + _MARGIN + mcu_h - 1) // mcu_h, rows)
        column0 = max(union[1] - _MARGIN, 0) // segment_w
        column1 = min((union[3] + _MARGIN + segment_w - 1) // segment_w, across)
        window[PLANE_Y], window[PLANE_X] = row0 * mcu_h, column0 * segment_w
        window[ROWS], window[STRIDE] = (row1 - row0) * mcu_h, (column1 - column0) * segment_w
        height, width = window[ROWS], window[STRIDE]
        area = (across, row0, row1, column0, column1, height, width)
        source, length = excerpt, _cut_out(data, layout, starts, area, excerpt)
    chroma_stride = window[STRIDE] // layout[FACTOR_X]
    luma = window[STRIDE] * window[ROWS]
    chroma = chroma_stride * (window[ROWS] // layout[FACTOR_Y])
    if luma + 2 * chroma > planes.shape[0]:
        return BAD_JPEG
    if not _is_read_alike(decoder, source, length, layout, height, width):
        return BAD_JPEG
    places = np.array([planes.ctypes.data, planes.ctypes.data, planes.ctypes.data], np.uintp)
    places[1] += np.uintp(luma)
    places[2] += np.uintp(luma + chroma)
    strides = np.array([window[STRIDE], chroma_stride, chroma_stride], np.int32)
    code = _to_planes(
        decoder[0],
        source.ctypes,
        length,
        places.ctypes,
        width,
        strides.ctypes,
        height,
        _STOP_ON_WARNING,
    )
    return OK if code == 0 else BAD_JPEG


@njit(cache=True)
def decode_pixels(data, size, pixels, pixel_format):
    """Decode a JPEG file of any kind; return 0, or non-zero on any warning (`jpeg_error`).

    data: (N,) uint8. size: the (height, width) that it must have, else `ANOTHER_SIZE`. pixels:
    (h, w, channels) uint8; h and w are the size itself or a half, quarter or eighth of it, rounded
    up. pixel_format: of TurboJPEG (TJPF_*), with as many channels.
    """
    found = np.empty(4, np.int32)
    decoder = _init()
    code = _turbo_header(decoder, data, data.size, found)
    _destroy(decoder)
    if code != 0 and found[0] < 0:
        return code  # refused outright; a warning comes again below
    if found[0] != size[1] or found[1] != size[0]:
        return ANOTHER_SIZE
    height, width, channels = pixels.shape
    decoder = _init()
    code = _to_pixels(
        decoder,
        data.ctypes,
        data.size,
        pixels.ctypes,
        width,
        channels * width,
        height,
        pixel_format,
        _STOP_ON_WARNING,
    )
    _destroy(decoder)
    return code


@njit(cache=True)
def jpeg_error():
    """Return where the text of TurboJPEG's last error or warning in this thread lies."""
    return _last_error()


@njit(cache=True)
def decode_jpeg(data, pixels):
    """Decode a whole stored JPEG into (H, W, 3) uint8 RGB; return its status.

    It is the status that the loader finds, had it to decode the whole.
    """
    return decode_alike(data, (pixels.shape[0], pixels.shape[1]), pixels, _RGB)


@njit(cache=True)
def decode_alike(data, size, pixels, pixel_format):
    """Decode as `decode_pixels` does if parser and libjpeg read the header alike; return OK or not.

    A status other than OK is the parser's, or BAD_JPEG.
    """
    layout = np.empty(LAYOUT, np.int64)
    status = parse_jpeg(data, layout)
    if status != OK:
        return status
    height, width = size
    decoder = np.array([_init()], np.uintp)
    sound = (
        layout[HEIGHT] == height
        and layout[WIDTH] == width
        and _is_read_alike(decoder, data, data.size, layout, height, width)
    )
    _destroy(decoder[0])
    if not sound or decode_pixels(data, size, pixels, pixel_format) != 0:
        return BAD_JPEG
    return OK
