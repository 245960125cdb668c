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
from numba import njit

from harl_fast.errors import ConfigError
from harl_fast.rng import uniform

TRIES = 10
"""Boxes tried before the fall-back, as in torchvision."""
_FLIP_DRAW = 4 * TRIES
"""Draw index of the horizontal flip, the vertical one follows; the tries use the ones before."""


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

    def __post_init__(self) -> None:
        if self.size_px < 1 or self.cells < 1:
            raise ConfigError(
                f"a view of {self.size_px} px with {self.cells} cells a side; both must be positive"
            )
        if not 0.0 <= self.centre <= 1.0:
            raise ConfigError(f"centre crop: share {self.centre} of the shorter side; use 0 to 1")


def geometry_table(views: Sequence[ViewGeometry]) -> npt.NDArray[np.float64]:
    """Return a row a view for `draw_view`: scale, ratio (low, high each), flips, centre."""
    rows = [(*view.scale, *view.ratio, view.flip_p, view.vflip_p, view.centre) for view in views]
    return np.array(rows, dtype=np.float64)


@njit(cache=True)
def draw_box(key, height, width, scale_low, scale_high, ratio_low, ratio_high):  # type: ignore[no-untyped-def]
    """Return (top, left, box height, box width) in pixels, the rule of RandomResizedCrop.

    height, width: of the image. The area share is uniform, the log of width over height is
    uniform, the corner is uniform among the integer places; after `TRIES` boxes that do not fit
    the largest central box within the range of ratios is taken (Szegedy et al. 2015; torchvision).
    """
    log_low, log_high = math.log(ratio_low), math.log(ratio_high)
    for attempt in range(TRIES):
        first = 4 * attempt
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
def draw_view(key, height, width, row):  # type: ignore[no-untyped-def]
    """Return (top, left, box height, box width, flip, vflip) of one view.

    row: the view's row of `geometry_table`.
    """
    if row[6] > 0.0:
        top, left, box_h, box_w = centre_box(height, width, row[6])
        return top, left, box_h, box_w, False, False
    top, left, box_h, box_w = draw_box(key, height, width, row[0], row[1], row[2], row[3])
    flip, vflip = uniform(key, _FLIP_DRAW) < row[4], uniform(key, _FLIP_DRAW + 1) < row[5]
    return top, left, box_h, box_w, flip, vflip


@njit(cache=True)
def _overlap(start_a, stop_a, start_b, stop_b):  # type: ignore[no-untyped-def]
    return max(0, min(stop_a, stop_b) - max(start_a, start_b))


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
    for row in range(cells):
        y_start = top * cells * size + row * cell_h
        y_stop = y_start + cell_h
        for column in range(cells):
            x_start = left * cells * size + column * cell_w
            x_stop = x_start + cell_w
            total = 0
            for y in range(y_start // pixel_h, min(size, -(-y_stop // pixel_h))):
                across = 0
                for x in range(x_start // pixel_w, min(size, -(-x_stop // pixel_w))):
                    bit = y * size + x
                    if (packed[bit >> 3] >> (7 - (bit & 7))) & 1:
                        across += _overlap(x_start, x_stop, x * pixel_w, (x + 1) * pixel_w)
                total += across * _overlap(y_start, y_stop, y * pixel_h, (y + 1) * pixel_h)
            target_row = cells - 1 - row if vflip else row
            target = cells - 1 - column if flip else column
            out[target_row, target] = total / (cell_h * cell_w)
