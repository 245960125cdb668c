"""How much of a box, and of each of its cells, the mask covers. Exact: areas are whole numbers.

A mask is (size * size / 8,) uint8, its bits by row, most significant first, in the frame of the
stored image of ``height`` x ``width`` pixels.
"""

from __future__ import annotations

import numpy as np

from harl_fast.jit import njit

_ONES = np.array([value.bit_count() for value in range(256)])
"""Set bits of each byte."""


@njit(cache=True)
def fill_integral(packed, size, integral):
    """Fill ``integral`` (size + 1, size + 1) int32 with counts of foreground mask pixels.

    packed: (size * size / 8,) uint8, see `cell_coverage`. ``integral[y, x]`` counts the pixels in
    rows before y and columns before x.
    """
    integral[0, :] = 0
    for y in range(size):
        integral[y + 1, 0] = 0
        across = 0
        for x in range(size):
            bit = y * size + x
            across += (packed[bit >> 3] >> (7 - (bit & 7))) & 1
            integral[y + 1, x + 1] = integral[y, x + 1] + across


@njit(cache=True)
def _area_before(integral, height, width, y, x):
    """Return the foreground's area above y and left of x, for edges y, x in 1/size image pixels.

    In units of (1/size image pixel)^2, in which a mask pixel is ``height`` x ``width``: exact.
    """
    row, column = y // height, x // width
    down, right = y - row * height, x - column * width
    area = np.int64(integral[row, column]) * height * width
    below, beside = min(row + 1, integral.shape[0] - 1), min(column + 1, integral.shape[1] - 1)
    corner = np.int64(integral[below, beside]) + integral[row, column]
    area += np.int64(integral[below, column] - integral[row, column]) * down * width
    area += np.int64(integral[row, beside] - integral[row, column]) * right * height
    return area + (corner - integral[below, column] - integral[row, beside]) * down * right


@njit(cache=True)
def foreground_share(integral, height, width, top, left, box_h, box_w):
    """Return the share of a box's area under the mask, in [0, 1]: `cell_coverage` of one cell.

    integral: see `fill_integral`. height, width: of the image. Mask pixels that the box cuts count
    by the part inside, as integers, so that the share is exact before the final division.
    """
    size = integral.shape[0] - 1
    y_start, y_stop = top * size, (top + box_h) * size
    x_start, x_stop = left * size, (left + box_w) * size
    area = (
        _area_before(integral, height, width, y_stop, x_stop)
        - _area_before(integral, height, width, y_start, x_stop)
        - _area_before(integral, height, width, y_stop, x_start)
        + _area_before(integral, height, width, y_start, x_start)
    )
    return area / ((y_stop - y_start) * (x_stop - x_start))


@njit(cache=True, error_model="numpy")  # no division by zero is looked for
def cell_coverage(packed, size, height, width, placed, out):
    """Fill ``out`` (cells, cells) float32 with each cell's foreground share, in [0, 1].

    packed: (size * size / 8,) uint8, the mask's bits by row, most significant first, in the frame
    of the image of ``height`` x ``width`` pixels. placed: a view as `draw_view` returns it.
    Edges of cells and of mask pixels are compared as integers, in units of
    1 / (cells * size) image pixels, so that the share is exact before the final division.
    """
    top, left, box_h, box_w, flip, vflip = placed
    cells = out.shape[0]
    cell_h, cell_w = box_h * size, box_w * size
    pixel_h, pixel_w = height * cells, width * cells
    # Each vertical edge: whole mask pixels before it, and how far it cuts into the next one.
    whole, part = np.empty(cells + 1, np.int64), np.empty(cells + 1, np.int64)
    for edge in range(cells + 1):
        x = left * cells * size + edge * cell_w
        whole[edge] = x // pixel_w
        part[edge] = x - whole[edge] * pixel_w
    line, total, known = np.empty(cells, np.int64), np.empty(cells, np.int64), -1
    for row in range(cells):
        y_start = top * cells * size + row * cell_h
        y_stop = y_start + cell_h
        total[:] = 0
        for y in range(y_start // pixel_h, min(size, -(-y_stop // pixel_h))):
            if y != known:  # small cells share mask rows
                _fill_line(packed, y * size >> 3, whole, part, pixel_w, line)
                known = y
            inside = min(y_stop, (y + 1) * pixel_h) - max(y_start, y * pixel_h)
            for column in range(cells):
                total[column] += line[column] * inside
        target_row = cells - 1 - row if vflip else row
        for column in range(cells):
            target = cells - 1 - column if flip else column
            out[target_row, target] = total[column] / (cell_h * cell_w)


@njit(cache=True)
def _fill_line(packed, byte, whole, part, pixel_w, line):
    """Fill ``line`` with one mask row's foreground between each edge and the next.

    byte: where the row starts. whole, part: the edges, rising, as in `cell_coverage`.
    """
    start, count, before = byte, 0, 0
    for edge in range(whole.shape[0]):
        stop = start + (whole[edge] >> 3)
        while byte < stop:
            count += _ONES[packed[byte]]
            byte += 1
        across = count * pixel_w
        bits = whole[edge] & 7
        if bits + part[edge] > 0:  # an edge at the row's end has no next byte
            value = np.int64(packed[byte])
            across += _ONES[value >> (8 - bits)] * pixel_w
            across += ((value >> (7 - bits)) & 1) * part[edge]
        if edge > 0:
            line[edge - 1] = across - before
        before = across
