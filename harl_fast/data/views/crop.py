"""Where a view's crop box lies, whether it is flipped, and what its cells see of the mask.

The one place that knows these rules. All functions are compiled and take their randomness as a
key of `rng.stream`, so image and mask need not talk to each other to agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harl_fast.config import crop_rule
from harl_fast.errors import ConfigError
from harl_fast.jit import njit
from harl_fast.rng import uniform

TRIES = 10
"""Boxes tried before the fall-back, as in torchvision."""
FOREGROUND_TRIES = 5
"""Boxes of which ``foreground>=T`` takes the first with enough foreground, else the last."""
_FLIP_DRAW = 4 * TRIES
"""Draw index of the horizontal flip, the vertical one follows; the tries use the ones before."""
_POINT_DRAW = _FLIP_DRAW + 2
"""Draw index of the foreground point that ``center-on-foreground`` looks at."""
_BOX_DRAWS = _POINT_DRAW + 1
"""Distance of the first draws of two boxes of ``foreground>=T``."""
_ONES = np.array([value.bit_count() for value in range(256)])
"""Set bits of each byte."""
_RANDOM, _FOREGROUND, _CENTRED = 0, 1, 2
_CROPS = {"random": _RANDOM, "foreground": _FOREGROUND, "center-on-foreground": _CENTRED}


@dataclass(frozen=True, kw_only=True)
class ViewGeometry:
    """How one view is cut from its image."""

    size_px: int
    """Side of the square view."""
    cells: int
    """Side of the grid of mask cells: the side of the encoder's last feature map."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the box's share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width over height, log-uniform."""
    flip_p: float = 0.5
    """Probability of a horizontal flip."""
    vflip_p: float = 0.0
    """Probability of a vertical flip (HARL's PyTorch release uses 0.5, BYOL none)."""
    centre: float = 0.0
    """Above 0: no randomness, the central square of this share of the shorter side."""
    crop: str = "random"
    """How the mask takes part in placing the box: random (not at all), foreground>=T with T in
    (0, 1], or center-on-foreground; see `draw_view`."""

    def __post_init__(self) -> None:
        if self.size_px < 1 or self.cells < 1:
            raise ConfigError(
                f"a view of {self.size_px} px with {self.cells} cells a side; both must be positive"
            )
        if not 0.0 <= self.centre <= 1.0:
            raise ConfigError(f"centre crop: share {self.centre} of the shorter side; use 0 to 1")
        try:
            crop_rule(self.crop)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def geometry_table(views: Sequence[ViewGeometry]) -> npt.NDArray[np.float64]:
    """Return a row a view for `draw_view`.

    Columns: scale and ratio (low, high each), both flips, centre, the crop's kind and threshold.
    """
    rows = []
    for view in views:
        kind, threshold = crop_rule(view.crop)
        flips = (view.flip_p, view.vflip_p)
        rows.append((*view.scale, *view.ratio, *flips, view.centre, _CROPS[kind], threshold))
    return np.array(rows, dtype=np.float64)


@njit(cache=True)
def needs_mask(table):  # type: ignore[no-untyped-def]
    """Return whether some view of a `geometry_table` needs `fill_integral` before `draw_view`."""
    for view in range(table.shape[0]):
        if table[view, 7] != _RANDOM and table[view, 6] == 0.0:
            return True
    return False


@njit(cache=True)
def draw_box(key, height, width, scale_low, scale_high, ratio_low, ratio_high, first_draw):  # type: ignore[no-untyped-def]
    """Return (top, left, box height, box width) in pixels, the rule of RandomResizedCrop.

    height, width: of the image. first_draw: index of the first of the 4 * `TRIES` draws it may
    use. The area share is uniform, the log of width over height is uniform, the corner is uniform
    among the integer places; after `TRIES` boxes that do not fit the largest central box within
    the range of ratios is taken (Szegedy et al. 2015; torchvision).
    """
    log_low, log_high = math.log(ratio_low), math.log(ratio_high)
    for attempt in range(TRIES):
        first = first_draw + 4 * attempt
        share = scale_low + (scale_high - scale_low) * uniform(key, first)
        aspect = math.exp(log_low + (log_high - log_low) * uniform(key, first + 1))
        box_w = round(math.sqrt(height * width * share * aspect))
        box_h = round(math.sqrt(height * width * share / aspect))
        if 0 < box_w <= width and 0 < box_h <= height:
            top = int(uniform(key, first + 2) * (height - box_h + 1))
            left = int(uniform(key, first + 3) * (width - box_w + 1))
            return top, left, box_h, box_w
    box_h, box_w = height, width
    if width < ratio_low * height:
        box_h = min(height, max(1, round(width / ratio_low)))
    elif width > ratio_high * height:
        box_w = min(width, max(1, round(height * ratio_high)))
    return (height - box_h) // 2, (width - box_w) // 2, box_h, box_w


@njit(cache=True)
def centre_box(height, width, share):  # type: ignore[no-untyped-def]
    """Return the central square box whose side is ``share`` of the image's shorter side.

    With share 224/256 this is the area that Resize(256) and CenterCrop(224) show.
    """
    side = max(1, round(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


@njit(cache=True)
def draw_view(key, height, width, row, integral):  # type: ignore[no-untyped-def]
    """Return (top, left, box height, box width, flip, vflip) of one view.

    row: the view's row of `geometry_table`. integral: of the sample's mask, see `fill_integral`;
    read only if the row's crop needs it (`needs_mask`), so it may hold anything otherwise.
    The box is that of `draw_box` under the crop ``random``. ``foreground>=T`` draws up to
    `FOREGROUND_TRIES` independent boxes, that one first, and takes the first whose foreground
    share (`foreground_share`) reaches T, else the last. ``center-on-foreground`` keeps that box's
    size and moves it by `centre_on_foreground`. The flips are the same under all crops.
    """
    if row[6] > 0.0:
        top, left, box_h, box_w = centre_box(height, width, row[6])
        return top, left, box_h, box_w, False, False
    top, left, box_h, box_w = draw_box(key, height, width, row[0], row[1], row[2], row[3], 0)
    if row[7] == _FOREGROUND:
        for number in range(1, FOREGROUND_TRIES):
            if foreground_share(integral, height, width, top, left, box_h, box_w) >= row[8]:
                break
            top, left, box_h, box_w = draw_box(
                key, height, width, row[0], row[1], row[2], row[3], number * _BOX_DRAWS
            )
    elif row[7] == _CENTRED:
        top, left = centre_on_foreground(
            uniform(key, _POINT_DRAW), integral, height, width, top, left, box_h, box_w
        )
    flip, vflip = uniform(key, _FLIP_DRAW) < row[4], uniform(key, _FLIP_DRAW + 1) < row[5]
    return top, left, box_h, box_w, flip, vflip


@njit(cache=True)
def fill_integral(packed, size, integral):  # type: ignore[no-untyped-def]
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
def _area_before(integral, height, width, y, x):  # type: ignore[no-untyped-def]
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
def foreground_share(integral, height, width, top, left, box_h, box_w):  # type: ignore[no-untyped-def]
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


@njit(cache=True)
def centre_on_foreground(draw, integral, height, width, top, left, box_h, box_w):  # type: ignore[no-untyped-def]
    """Return (top, left) of the box moved onto a foreground point.

    draw: uniform in [0, 1). Of the N foreground pixels, counted by row, number floor(draw * N) is
    chosen; the box's centre is put on that mask pixel's centre, to the nearest whole image pixel,
    and the box then moved into the image, where it still holds the point. Without foreground it
    stays where it is.
    """
    size = integral.shape[0] - 1
    if integral[size, size] == 0:
        return top, left
    rank = int(draw * integral[size, size])
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if integral[middle + 1, size] > rank:
            high = middle
        else:
            low = middle + 1
    y, rank = low, rank - integral[low, size]
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if integral[y + 1, middle + 1] - integral[y, middle + 1] > rank:
            high = middle
        else:
            low = middle + 1
    # floor(a / 2b + 1/2): the corner whose centre is nearest to (2 y + 1) / 2 mask pixels.
    new_top = ((2 * y + 1) * height - box_h * size + size) // (2 * size)
    new_left = ((2 * low + 1) * width - box_w * size + size) // (2 * size)
    return min(max(new_top, 0), height - box_h), min(max(new_left, 0), width - box_w)


@njit(cache=True)
def cell_coverage(packed, size, height, width, placed, out):  # type: ignore[no-untyped-def]
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
    before = np.empty(cells + 1, np.int64)
    for row in range(cells):
        y_start = top * cells * size + row * cell_h
        y_stop = y_start + cell_h
        before[:] = 0
        for y in range(y_start // pixel_h, min(size, -(-y_stop // pixel_h))):
            inside = min(y_stop, (y + 1) * pixel_h) - max(y_start, y * pixel_h)
            _add_before(packed, y * size >> 3, whole, part, pixel_w, inside, before)
        target_row = cells - 1 - row if vflip else row
        for column in range(cells):
            target = cells - 1 - column if flip else column
            out[target_row, target] = (before[column + 1] - before[column]) / (cell_h * cell_w)


@njit(cache=True)
def _add_before(packed, byte, whole, part, pixel_w, inside, before):  # type: ignore[no-untyped-def]
    """Add one mask row's foreground left of each edge, times ``inside``, to ``before``.

    byte: where the row starts. whole, part: the edges, rising, as in `cell_coverage`.
    """
    start, count = byte, 0
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
        before[edge] += across * inside
