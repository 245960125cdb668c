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
"""

from __future__ import annotations

import ffcv._libffcv
import llvmlite.binding
import numpy as np
from numba import types

from harl_fast.jit import njit

OK, NO_DATA, BAD_JPEG, UNSUPPORTED = 0, 1, 2, 3
"""Status of an image: fine; its bytes lie outside the file; damaged; a kind that is not read."""

# TurboJPEG is what libffcv is linked with. Called by symbol name, not through ctypes: a pointer of
# this process would forbid numba's cache.
llvmlite.binding.load_library_permanently(ffcv._libffcv.__file__)
_bytes = types.CPointer(types.uint8)
_init = types.ExternalFunction("tjInitDecompress", types.uintp())
_destroy = types.ExternalFunction("tjDestroy", types.int32(types.uintp))
_to_planes = types.ExternalFunction(
    "tjDecompressToYUVPlanes",
    types.int32(
        types.uintp,
        _bytes,
        types.uint64,
        types.CPointer(types.uintp),
        types.int32,
        types.CPointer(types.int32),
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
_memchr = types.ExternalFunction("memchr", types.uintp(_bytes, types.int32, types.uintp))
_memcpy = types.ExternalFunction("memcpy", types.uintp(_bytes, _bytes, types.uintp))

WIDTH, HEIGHT, CHANNELS, FACTOR_X, FACTOR_Y, INTERVAL, SIZE_AT, SCAN_AT = range(8)
LAYOUT = 8
"""Length of a `parse_jpeg` record: size in pixels; 1 or 3 channels; luma samples per chroma sample
across and down; MCUs between restart markers (0: none); where the header holds the size; where the
entropy-coded data begin."""

PLANE_Y, PLANE_X, STRIDE, ROWS = range(4)
WINDOW = 4
"""Length of a `decode_planes` window: the first pixel row and column, the luma plane's size."""
_MARGIN = 2
"""Pixels around a box that the interpolation of its chroma reaches."""


@njit(cache=True)
def open_decoder():  # type: ignore[no-untyped-def]
    """Return a TurboJPEG decompressor for one thread, to be given to `close_decoder`."""
    return _init()


@njit(cache=True)
def close_decoder(decoder):  # type: ignore[no-untyped-def]
    """Free a decompressor."""
    _destroy(decoder)


@njit(cache=True)
def _word(data, at):  # type: ignore[no-untyped-def]
    return (np.int64(data[at]) << 8) | np.int64(data[at + 1])


@njit(cache=True)
def _frame(data, at, length, layout):  # type: ignore[no-untyped-def]
    """Read a frame header (ITU-T T.81, B.2.2)."""
    channels = np.int64(data[at + 7]) if length >= 8 else 0
    if length != 8 + 3 * channels or data[at + 2] != 8 or (channels != 1 and channels != 3):
        return UNSUPPORTED
    layout[HEIGHT], layout[WIDTH] = _word(data, at + 3), _word(data, at + 5)
    layout[CHANNELS], layout[SIZE_AT] = channels, at + 3
    across, down = np.int64(data[at + 9] >> 4), np.int64(data[at + 9] & 15)
    if channels == 1:
        across = down = np.int64(1)  # a lone component is not interleaved: factors mean nothing
    elif data[at + 12] != 0x11 or data[at + 15] != 0x11:
        return UNSUPPORTED
    elif data[at + 8] == 82 and data[at + 11] == 71 and data[at + 14] == 66:
        return UNSUPPORTED  # components named R, G, B
    if not (1 <= across <= 2 and 1 <= down <= 2) or layout[HEIGHT] == 0 or layout[WIDTH] == 0:
        return UNSUPPORTED
    layout[FACTOR_X], layout[FACTOR_Y] = across, down
    return OK


@njit(cache=True)
def _is_adobe_rgb(data, at, length):  # type: ignore[no-untyped-def]
    # "Adobe", version, two flag words, transform: 0 means that nothing was transformed.
    return length >= 14 and data[at + 2] == 65 and data[at + 3] == 100 and data[at + 13] == 0


@njit(cache=True)
def _segment(data, at, length, marker, layout):  # type: ignore[no-untyped-def]
    """Read one header segment; ``at`` is where its length stands."""
    if marker == 0xC0 or marker == 0xC1:
        return _frame(data, at, length, layout)
    if 0xC2 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
        return UNSUPPORTED
    if marker == 0xDD and length == 4:
        layout[INTERVAL] = _word(data, at + 2)
    if marker == 0xEE and _is_adobe_rgb(data, at, length):
        return UNSUPPORTED
    if marker == 0xDA:
        layout[SCAN_AT] = at + length
        if layout[CHANNELS] == 0 or length < 6:
            return BAD_JPEG
        if np.int64(data[at + 2]) != layout[CHANNELS]:
            return UNSUPPORTED
    return OK


@njit(cache=True)
def parse_jpeg(data, layout):  # type: ignore[no-untyped-def]
    """Fill ``layout`` (`LAYOUT`,) int64 from JPEG bytes (N,) uint8; return OK or what is wrong.

    Read are 8-bit sequential Huffman JPEGs of one scan, grey or YCbCr, whose chroma is whole or
    halved across, down or both.
    """
    layout[:] = 0
    size = data.shape[0]
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return BAD_JPEG
    at = 2
    while at + 4 <= size and layout[SCAN_AT] == 0:
        if data[at] != 0xFF:
            return BAD_JPEG
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        length = _word(data, at + 2)
        if length < 2 or at + 2 + length > size:
            return BAD_JPEG
        status = _segment(data, at + 2, length, data[at + 1], layout)
        if status != OK:
            return status
        at += 2 + length
    return OK if layout[SCAN_AT] > 0 else BAD_JPEG


@njit(cache=True)
def _find_segments(data, at, starts):  # type: ignore[no-untyped-def]
    """Fill ``starts`` with where each restart segment begins and, last, where the scan ends.

    Returns whether the markers are those expected, in their order.
    """
    count = starts.shape[0] - 1
    starts[0] = at
    found, size = 0, data.shape[0]
    base = np.uintp(data.ctypes.data)
    while at + 1 < size:
        place = _memchr(data[at:].ctypes, 0xFF, size - 1 - at)
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
def _cut_out(data, layout, starts, area, excerpt):  # type: ignore[no-untyped-def]
    """Write the JPEG of some restart segments to ``excerpt``; return its length in bytes.

    area: segments a picture row, first and past-the-last row, first and past-the-last segment of
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
            _memcpy(excerpt[length:].ctypes, data[begin:].ctypes, end - begin)
            length += end - begin
            number += 1
    excerpt[length], excerpt[length + 1] = 0xFF, 0xD9
    return length + 2


@njit(cache=True)
def excerpt_size(largest_jpeg):  # type: ignore[no-untyped-def]
    """Return how many bytes an excerpt of a JPEG of so many bytes can take."""
    return largest_jpeg + 64


@njit(cache=True)
def planes_size(height, width):  # type: ignore[no-untyped-def]
    """Return how many bytes the planes of a picture can take (chroma at full resolution)."""
    return 3 * ((height + 15) // 16 * 16) * ((width + 15) // 16 * 16)


@njit(cache=True)
def _segments_across(layout):  # type: ignore[no-untyped-def]
    """Return the restart segments of a row of MCUs, or 0 if rows are not cut evenly."""
    side = 8 * layout[FACTOR_X]
    mcus = (layout[WIDTH] + side - 1) // side
    if layout[INTERVAL] == 0 or mcus % layout[INTERVAL] != 0:
        return 0
    return mcus // layout[INTERVAL]


@njit(cache=True)
def decode_planes(decoder, data, layout, union, excerpt, planes, window):  # type: ignore[no-untyped-def]
    """Decode the rectangle ``union`` into ``planes``; return OK or BAD_JPEG.

    decoder: from `open_decoder`. data, layout: see `parse_jpeg`. union: (top, left, bottom, right)
    in pixels. excerpt: (`excerpt_size`,) uint8 scratch. planes: (`planes_size`,) uint8, receives
    luma and chroma one after another; window: (`WINDOW`,) int64, receives where they lie: chroma
    has STRIDE / FACTOR_X by ROWS / FACTOR_Y bytes.
    """
    height, width = layout[HEIGHT], layout[WIDTH]
    mcu_h, mcu_w = 8 * layout[FACTOR_Y], 8 * layout[FACTOR_X]
    rows = (height + mcu_h - 1) // mcu_h
    across = _segments_across(layout)
    source, length = data, data.shape[0]
    window[PLANE_Y], window[PLANE_X] = 0, 0
    window[ROWS] = rows * mcu_h
    window[STRIDE] = (width + mcu_w - 1) // mcu_w * mcu_w
    starts = np.empty(rows * across + 1, np.int64)
    if across > 0 and _find_segments(data, layout[SCAN_AT], starts):
        segment_w = layout[INTERVAL] * mcu_w
        row0 = max(union[0] - _MARGIN, 0) // mcu_h
        row1 = min((union[2] + _MARGIN + mcu_h - 1) // mcu_h, rows)
        column0 = max(union[1] - _MARGIN, 0) // segment_w
        column1 = min((union[3] + _MARGIN + segment_w - 1) // segment_w, across)
        window[PLANE_Y], window[PLANE_X] = row0 * mcu_h, column0 * segment_w
        window[ROWS], window[STRIDE] = (row1 - row0) * mcu_h, (column1 - column0) * segment_w
        area = (across, row0, row1, column0, column1, window[ROWS], window[STRIDE])
        source, length = excerpt, _cut_out(data, layout, starts, area, excerpt)
    chroma_stride = window[STRIDE] // layout[FACTOR_X]
    luma = window[STRIDE] * window[ROWS]
    chroma = chroma_stride * (window[ROWS] // layout[FACTOR_Y])
    places = np.array([planes.ctypes.data, planes.ctypes.data, planes.ctypes.data], np.uintp)
    places[1] += np.uintp(luma)
    places[2] += np.uintp(luma + chroma)
    strides = np.array([window[STRIDE], chroma_stride, chroma_stride], np.int32)
    code = _to_planes(decoder, source.ctypes, length, places.ctypes, 0, strides.ctypes, 0, 0)
    return OK if code == 0 else BAD_JPEG


@njit(cache=True)
def decode_jpeg(data, height, width, pixels):  # type: ignore[no-untyped-def]
    """Decode a whole JPEG of any kind into RGB; return 0, or non-zero on any damage.

    data: (N,) uint8. pixels: (at least height * width * 3,) uint8, filled row by row.
    """
    decoder = _init()
    code = _to_pixels(
        decoder, data.ctypes, data.size, pixels.ctypes, width, 3 * width, height, 0, 0
    )
    _destroy(decoder)
    return code
