"""What a JPEG's header says, read strictly: what lies before its scan, in one way only.

Read are 8-bit sequential Huffman JPEGs of one scan, grey or YCbCr, whose chroma is whole or halved
across, down or both. Before the scan stand only segments that libjpeg, too, reads with their length
(jdmarker.c), end to end. A marker without one, such as RST0, would have it go on reading where a
reader of lengths sees a segment's content: one file, two pictures.
"""

from __future__ import annotations

import numpy as np

from harl_fast.jit import njit

WIDTH, HEIGHT, CHANNELS, FACTOR_X, FACTOR_Y, INTERVAL, SIZE_AT, SCAN_AT, SIGN, REASON = range(10)
LAYOUT = 10
"""Length of a header's record: size in pixels; 1 or 3 channels; luma samples per chroma sample
across and down; MCUs between restart markers (0: none); where the header holds the size; where the
entropy-coded data begin; what an application segment says of the colours (`_NO_SIGN` ...); why the
file is not read, an index of `REASONS`."""
REASONS = (
    "",
    "not a JPEG",
    "no sound JPEG header",
    "progressive",
    "lossless",
    "arithmetic coding",
    "not baseline 8 bit",
    "size not in its header",
    "colours other than YCbCr",
    "unusual chroma sampling",
    "several scans, which the loader does not read",
)
(
    READ,
    _NO_JPEG,
    BROKEN,
    _PROGRESSIVE,
    _LOSSLESS,
    _ARITHMETIC,
    _NOT_BASELINE,
    _NO_SIZE,
    _COLOURS,
    _SAMPLING,
    _SCANS,
) = range(len(REASONS))
_NO_SIGN, _SAYS_JFIF, _SAYS_YCBCR, _SAYS_RGB = range(4)
_DHT, _JPG, _DAC, _SOS, _DQT, _DRI, _COM = 0xC4, 0xC8, 0xCC, 0xDA, 0xDB, 0xDD, 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF
_JFIF = np.frombuffer(b"JFIF\0", np.uint8)
_ADOBE = np.frombuffer(b"Adobe", np.uint8)


@njit(cache=True)
def _word(data, at):
    return (np.int64(data[at]) << 8) | np.int64(data[at + 1])


@njit(cache=True)
def _begins(data, at, text):
    same = True
    for place in range(text.shape[0]):
        same = same and data[at + place] == text[place]
    return same


@njit(cache=True)
def _read_frame(data, at, length, marker, layout):
    """Read a frame header (ITU-T T.81, B.2.2), whose length stands at ``at``."""
    if marker == 0xC2:
        return _PROGRESSIVE
    if marker == 0xC3:
        return _LOSSLESS
    if marker == 0xC9 or marker == 0xCA:
        return _ARITHMETIC
    if length < 8 or layout[SIZE_AT] != 0:
        return BROKEN
    if marker > 0xC1 or data[at + 2] != 8:
        return _NOT_BASELINE
    layout[HEIGHT], layout[WIDTH] = _word(data, at + 3), _word(data, at + 5)
    layout[CHANNELS], layout[SIZE_AT] = data[at + 7], at + 3
    if length != 8 + 3 * layout[CHANNELS]:
        return BROKEN
    if layout[HEIGHT] == 0 or layout[WIDTH] == 0:
        return _NO_SIZE
    return READ if layout[CHANNELS] == 1 or layout[CHANNELS] == 3 else _COLOURS


@njit(cache=True)
def _read_scan(data, at, length, layout):
    """Read a scan header (ITU-T T.81, B.2.3), whose length stands at ``at``, and judge the whole.

    Colours are what libjpeg takes them for (jdapimin.c, default_decompress_parms).
    """
    channels, count = layout[CHANNELS], np.int64(data[at + 2]) if length > 2 else 0
    if channels == 0 or length != 6 + 2 * count or count < 1 or count > channels:
        return BROKEN
    if count < channels:
        return _SCANS
    layout[FACTOR_X] = layout[FACTOR_Y] = 1  # a lone component is not interleaved
    if channels == 3:
        first = layout[SIZE_AT] + 5  # of three times: name, sampling, quantization table
        named_rgb = data[first] == 82 and data[first + 3] == 71 and data[first + 6] == 66
        if layout[SIGN] == _SAYS_RGB or (layout[SIGN] == _NO_SIGN and named_rgb):
            return _COLOURS
        across, down = np.int64(data[first + 1] >> 4), np.int64(data[first + 1] & 15)
        if data[first + 4] != 0x11 or data[first + 7] != 0x11:
            return _SAMPLING
        if not (1 <= across <= 2 and 1 <= down <= 2):
            return _SAMPLING
        layout[FACTOR_X], layout[FACTOR_Y] = across, down
    layout[SCAN_AT] = at + length
    return READ


@njit(cache=True)
def _read_segment(data, at, length, marker, layout):
    """Read one segment before the scan; ``at`` is where its length stands."""
    if marker in (_DHT, _DQT, _COM):
        return READ
    if marker == _DAC:
        return _ARITHMETIC
    if 0xC0 <= marker <= 0xCF and marker != _JPG:
        return _read_frame(data, at, length, marker, layout)
    if marker == _DRI and length == 4:
        layout[INTERVAL] = _word(data, at + 2)
        return READ
    if not _APP0 <= marker <= _APP15:
        return BROKEN  # libjpeg reads no length here, or another one, or gives up
    if marker == _APP0 and length >= 16 and _begins(data, at + 2, _JFIF):
        layout[SIGN] = _SAYS_JFIF
    elif marker == _APP14 and length >= 14 and _begins(data, at + 2, _ADOBE):
        adobe = _SAYS_RGB if data[at + 13] == 0 else _SAYS_YCBCR
        layout[SIGN] = _SAYS_JFIF if layout[SIGN] == _SAYS_JFIF else adobe
    return READ


@njit(cache=True)
def _judge(data, layout):
    size = data.shape[0]
    if size < 2 or data[0] != 0xFF or data[1] != 0xD8:
        return _NO_JPEG
    at = 2
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2
        length = _word(data, at)
        if length < 2 or at + length > size:
            return BROKEN
        if marker == _SOS:
            return _read_scan(data, at, length, layout)
        reason = _read_segment(data, at, length, marker, layout)
        if reason != READ:
            return reason
        at += length
    return BROKEN


@njit(cache=True)
def read_header(data, layout):
    """Fill ``layout`` (`LAYOUT`,) int64 from JPEG bytes (N,) uint8; return its `REASONS` index."""
    layout[:] = 0
    layout[REASON] = _judge(data, layout)
    return layout[REASON]
