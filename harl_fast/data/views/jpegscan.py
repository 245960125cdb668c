"""Whether the entropy-coded data of a JPEG are sound, by its Huffman codes alone.

To judge a file libjpeg has to unpack its coefficients, which is nearly all of its time. Here codes
are only told apart: what a code stands for is skipped by its length, and one look-up passes over as
many codes as lie within its bits. It says "sound" only where libjpeg has nothing to warn of;
anything unusual, sound or not, is left for libjpeg to tell.
"""

from __future__ import annotations

import numpy as np

from harl_fast.data.views.jpeg import GREY, OK, decode_alike, memchr, memcpy, parse_jpeg
from harl_fast.data.views.jpegheader import (
    CHANNELS,
    FACTOR_X,
    FACTOR_Y,
    HEIGHT,
    INTERVAL,
    LAYOUT,
    SCAN_AT,
    SIZE_AT,
    WIDTH,
)
from harl_fast.jit import njit

_BITS = 11
"""That a look-up sees: its tables stay in a core's first cache."""
_ENTRIES = 1 << _BITS
_LENGTH, _ADVANCE, _ADVANCE_AT, _END = 63, 63, 6, 1 << 12
"""Parts of an entry: how many bits its codes and what they stand for take; by how many coefficients
they go on; whether the block ends. 0: the code is longer than what a look-up sees, or none."""
_TABLES = 8
"""Of two classes, DC (0) and AC (1), four each."""
_WORD = 57
"""Bits that are there for certain of 8 bytes read from any bit on."""
_LONGEST = 16
"""Bits of a code."""
_DC_SIZES = 16
"""Past the largest: what libjpeg takes for the size of a DC difference."""
_DHT, _SOS, _EOI, _RST0 = 0xC4, 0xDA, 0xD9, 0xD0
_MCU_BYTES = 6 * 64 * 4 * 2
"""The most that one takes: six blocks of 64 codes and values of 32 bits, each byte stuffed."""
_MOST_SIDE = 65_500
"""Of a picture, to libjpeg."""


@njit(cache=True)
def _read_tables(data, layout, counts, symbols, chosen):
    """Fill what the header says of Huffman codes; return whether it is plain.

    counts: (`_TABLES`, 16) int64, codes of each length. symbols: (`_TABLES`, 256) uint8. chosen:
    (components, 2) int64, each one's tables for DC and AC.
    """
    counts[:] = 0
    at, scan_at = np.int64(2), layout[SCAN_AT]
    while at < scan_at:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + (np.int64(data[at + 2]) << 8) + np.int64(data[at + 3])
        at += 4
        while marker == _DHT and at < end:
            kind, number = data[at] >> 4, data[at] & 15
            if at + 17 > end or kind > 1 or number > 3:
                return False
            table = 4 * kind + number
            counts[table] = data[at + 1 : at + 17]
            total = counts[table].sum()
            if total > 256 or at + 17 + total > end:
                return False
            symbols[table, :total] = data[at + 17 : at + 17 + total]
            at += 17 + total
        if marker == _SOS:
            for component in range(layout[CHANNELS]):
                named, byte = data[at + 1 + 2 * component], data[at + 2 + 2 * component]
                dc, ac = byte >> 4, byte & 15
                in_turn = named == data[layout[SIZE_AT] + 5 + 3 * component]
                if dc > 3 or ac > 3 or not in_turn:
                    return False
                chosen[component, 0], chosen[component, 1] = dc, 4 + ac
        at = end
    return True


@njit(cache=True)
def _entry(symbol, length, is_dc):
    """Return the entry of one code, see `_LENGTH`; 0 for one that no file should have."""
    size = symbol & 15
    if is_dc:
        return length + symbol | 1 << _ADVANCE_AT if symbol < _DC_SIZES else 0
    if size != 0:
        return length + size | ((symbol >> 4) + 1) << _ADVANCE_AT
    return length | 16 << _ADVANCE_AT if symbol == 0xF0 else length | _END


@njit(cache=True)
def _fill(table, counts, symbols, is_dc):
    """Fill a table (`_ENTRIES`,) uint16 for codes of 1 to 16 bits (ITU-T T.81, annex C).

    Returns whether there are no more codes of a length than it has room for.
    """
    single, lengths = np.zeros(_ENTRIES, np.int64), np.zeros(_ENTRIES, np.int64)
    code, k = 0, 0
    for length in range(1, _BITS + 1):
        for _ in range(counts[length - 1]):
            first, last = code << (_BITS - length), (code + 1) << (_BITS - length)
            if last > _ENTRIES:
                return False
            single[first:last] = _entry(np.int64(symbols[k]), length, is_dc)
            lengths[first:last] = length
            code, k = code + 1, k + 1
        code <<= 1
    for bits in range(_ENTRIES):
        entry = single[bits]
        taken, advance = entry & _LENGTH, entry >> _ADVANCE_AT & _ADVANCE
        end = entry & _END
        while not is_dc and entry != 0 and end == 0 and taken < _BITS:
            rest = bits << taken & (_ENTRIES - 1)
            following = single[rest]
            if following == 0 or taken + lengths[rest] > _BITS:
                break
            taken += following & _LENGTH
            advance += following >> _ADVANCE_AT & _ADVANCE
            end = following & _END
        table[bits] = taken | advance << _ADVANCE_AT | end if advance <= _ADVANCE else 0
    return True


@njit(cache=True)
def _fill_chosen(tables, counts, symbols, blocks):
    """Fill the tables (`_TABLES`, `_ENTRIES`) that an MCU's blocks use; see `_fill`."""
    filled = np.zeros(_TABLES, np.bool_)
    for block in range(blocks.shape[0]):
        for table in blocks[block]:
            if not filled[table]:
                if not _fill(tables[table], counts[table], symbols[table], table < 4):
                    return False
                filled[table] = True
    return True


@njit(cache=True)
def _one_code(word, counts, symbols, is_dc):
    """Return the entry of the code that a word begins with, of any length; 0 if it is none."""
    code, k = 0, 0
    for length in range(1, _LONGEST + 1):
        count = counts[length - 1]
        ahead = np.int64(word >> np.uint64(64 - length)) - code
        if ahead < count:
            return _entry(np.int64(symbols[k + ahead]), length, is_dc)
        code, k = (code + count) << 1, k + count
    return 0


@njit(cache=True)
def _word_at(stream, bit):
    """Return the 64 bits from a byte on, moved up to begin at a bit of it; 57 or more are valid."""
    at, word = bit >> np.uint64(3), np.uint64(0)
    for place in range(8):  # compiled to one load
        word = word << np.uint64(8) | np.uint64(stream[at + np.uint64(place)])
    return word << (bit & np.uint64(7))


@njit(cache=True)
def _dc_length(word, tables, table, counts, symbols):
    """Return how many bits a code for DC and what it stands for take, or 0."""
    place = np.uint64(table * _ENTRIES) + (word >> np.uint64(64 - _BITS))
    entry = np.int64(tables[place])
    if entry == 0:
        entry = _one_code(word, counts[table], symbols[table], True)
    return entry & _LENGTH


@njit(cache=True)
def _pass_over(stream, bit, end, mcus, codes):
    """Return the bit behind so many MCUs, or -1 for anything but plain codes.

    stream: bytes without stuffing, 8 more than ``end`` bits take. codes: what `_read_tables` and
    `_fill` fill, and `blocks`, the (DC, AC) tables of each block of an MCU.
    """
    tables, counts, symbols, blocks = codes
    at, stop, shift = np.uint64(bit), np.uint64(end), np.uint64(64 - _BITS)
    advance_at = np.uint64(_ADVANCE_AT)
    for _ in range(mcus):
        for block in range(blocks.shape[0]):
            dc, ac = blocks[block, 0], blocks[block, 1]
            if at >= stop:
                return -1
            word = _word_at(stream, at)
            length = np.uint64(_dc_length(word, tables, dc, counts, symbols))
            if length == 0:
                return -1
            at += length
            word <<= length
            left, k = np.int64(_WORD) - np.int64(length), np.uint64(1)
            base = np.uint64(ac * _ENTRIES)
            while k < 64:
                if left < _LONGEST:
                    if at >= stop:
                        return -1
                    word, left = _word_at(stream, at), np.int64(_WORD)
                entry = np.uint64(tables[base + (word >> shift)])
                behind = k + (entry >> advance_at & np.uint64(_ADVANCE))
                if entry == 0 or behind > 63:  # codes of the next block may be among them
                    entry = np.uint64(_one_code(word, counts[ac], symbols[ac], False))
                    behind = k + (entry >> advance_at & np.uint64(_ADVANCE))
                    if entry == 0 or behind > 64:
                        return -1
                length = entry & np.uint64(_LENGTH)
                at += length
                word <<= length
                left -= np.int64(length)
                k = np.uint64(64) if entry >= _END else behind
    return np.int64(at) if at <= stop else -1


@njit(cache=True)
def _unstuff(data, at, stream):
    """Copy what lies before the next marker to ``stream`` without its stuffed zeros.

    Returns how many bytes those are, and where the marker stands; -1 if there is none.
    """
    base, count = np.uintp(data.ctypes.data), 0
    while at + 1 < data.shape[0]:
        place = memchr(data[at:].ctypes, 0xFF, data.shape[0] - 1 - at)
        if place == 0:
            return -1, at
        found = np.int64(place - base)
        stuffed = data[found + 1] == 0
        stop = found + 1 if stuffed else found
        memcpy(stream[count:].ctypes, data[at:].ctypes, stop - at)
        count += stop - at
        if not stuffed:
            return count, found
        at = found + 2
    return -1, at


@njit(cache=True)
def _cut_first(data, layout, stream, bits):
    """Return the JPEG of the top left MCU, which takes so many bits of ``stream``."""
    found, length = np.empty(layout[SCAN_AT] + _MCU_BYTES + 2, np.uint8), layout[SCAN_AT]
    found[:length] = data[:length]
    at = layout[SIZE_AT]
    found[at], found[at + 1] = 0, 8 * layout[FACTOR_Y]
    found[at + 2], found[at + 3] = 0, 8 * layout[FACTOR_X]
    for place in range((bits + 7) // 8):
        found[length] = stream[place]
        length += 1
        if stream[place] == 0xFF:
            found[length] = 0
            length += 1
    found[length], found[length + 1] = 0xFF, _EOI
    return found[: length + 2]


@njit(cache=True)
def first_of_sound(data, layout, stream):
    """Return the JPEG of the top left MCU if all MCUs are plainly sound, else nothing.

    data, layout: see `parse_jpeg`. stream: scratch, (N,) uint8 as the data: what it holds of them
    is shorter by the header, so that `_word_at` reads none but its own bytes.
    """
    nothing = np.empty(0, np.uint8)
    counts, symbols = np.empty((_TABLES, 16), np.int64), np.empty((_TABLES, 256), np.uint8)
    chosen = np.empty((3, 2), np.int64)
    if not _read_tables(data, layout, counts, symbols, chosen):
        return nothing
    lumas = layout[FACTOR_Y] * layout[FACTOR_X]
    blocks = np.empty((lumas + layout[CHANNELS] - 1, 2), np.int64)
    blocks[:lumas], blocks[lumas:] = chosen[0], chosen[1 : layout[CHANNELS]]
    tables = np.empty((_TABLES, _ENTRIES), np.uint16)
    if not _fill_chosen(tables, counts, symbols, blocks):
        return nothing
    codes = (tables.reshape(-1), counts, symbols, blocks)
    across = (layout[WIDTH] + 8 * layout[FACTOR_X] - 1) // (8 * layout[FACTOR_X])
    down = (layout[HEIGHT] + 8 * layout[FACTOR_Y] - 1) // (8 * layout[FACTOR_Y])
    at, left, segment, first = layout[SCAN_AT], across * down, 0, nothing
    while left > 0:
        count, marker_at = _unstuff(data, at, stream)
        if count < 0:
            return nothing
        mcus = min(left, layout[INTERVAL]) if layout[INTERVAL] else left
        bit = 0
        if segment == 0:
            bit = _pass_over(stream, 0, 8 * count, 1, codes)
            if bit < 0:
                return nothing
            first = _cut_first(data, layout, stream, bit)
        bit = _pass_over(stream, bit, 8 * count, mcus - (segment == 0), codes)
        left -= mcus
        marker = _EOI if left == 0 else _RST0 + (segment & 7)
        # A whole byte left over is one too many to libjpeg.
        if bit < 0 or 8 * count - bit >= 8 or data[marker_at + 1] != marker:
            return nothing
        at, segment = marker_at + 2, segment + 1
    return first


@njit(cache=True)
def judge_jpeg(data, size):
    """Return the status of `decode_jpeg` for a picture of ``size`` (height, width), for less work.

    The header is for libjpeg to judge, and so it does with one MCU behind it. Of a scan that is not
    plainly sound it unpacks all, and makes an eighth of the grey pixels.
    """
    layout = np.empty(LAYOUT, np.int64)
    status = parse_jpeg(data, layout)
    if status != OK:
        return status
    height, width = size
    if height == layout[HEIGHT] and width == layout[WIDTH] and max(height, width) <= _MOST_SIDE:
        first = first_of_sound(data, layout, np.empty(data.shape[0], np.uint8))
        factors = (layout[FACTOR_Y], layout[FACTOR_X])
        pixels = np.empty((*factors, 1), np.uint8)
        if first.size and decode_alike(first, (8 * factors[0], 8 * factors[1]), pixels, GREY) == OK:
            return OK
    pixels = np.empty(((height + 7) // 8, (width + 7) // 8, 1), np.uint8)
    return decode_alike(data, size, pixels, GREY)
