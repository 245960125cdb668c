"""Where a view's crop box lies and whether it is flipped: the one place that knows these rules.

All functions are compiled and take their randomness as a key of `rng.stream`, so image and mask
need not talk to each other to agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harl_fast.config import ViewConfig
from harl_fast.data.views.cells import foreground_share
from harl_fast.errors import ConfigError
from harl_fast.jit import njit
from harl_fast.options import check_finite, check_whole, crop_rule
from harl_fast.rng import uniform
from harl_fast.section import validated

TRIES = 10
"""Boxes tried before the fall-back, as in torchvision."""
FOREGROUND_TRIES = 5
"""Boxes of which ``foreground>=T`` takes the first with enough foreground, else the last, and
``background`` the one with the least."""
_FLIP_DRAW = 4 * TRIES
"""Draw index of the horizontal flip, the vertical one follows; the tries use the ones before."""
_POINT_DRAW = _FLIP_DRAW + 2
"""Draw index of the foreground point that ``center-on-foreground`` looks at."""
_BOX_DRAWS = _POINT_DRAW + 1
"""Distance of the first draws of two boxes of ``foreground>=T``."""
_RANDOM, _FOREGROUND, _CENTRED, _BACKGROUND = 0, 1, 2, 3
_CROPS = {
    "random": _RANDOM,
    "foreground": _FOREGROUND,
    "center-on-foreground": _CENTRED,
    "background": _BACKGROUND,
}


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
    (0, 1], center-on-foreground, or background; see `draw_view`."""

    background_p: float = 0.0
    """Probability that its background is replaced, see `views.background`."""

    def __post_init__(self) -> None:
        check_whole(1, size_px=self.size_px, cells=self.cells)
        if self.cells > self.size_px:
            raise ConfigError(
                f"a view of {self.size_px} px with {self.cells} cells per side; use 1 cell or "
                f"more, and no more than pixels"
            )
        check_finite(1.0, centre=self.centre)
        own = {name: getattr(self, name) for name in _shared() if name != "size_px"}
        validated(ViewConfig, own, where="a view's geometry")

    @classmethod
    def of(cls, view: ViewConfig, *, cells: int) -> ViewGeometry:
        """Return how a configured view is cut: all fields of the same name."""
        return cls(cells=cells, **{name: getattr(view, name) for name in _shared()})


def _shared() -> list[str]:
    """Return the fields that are keys of a configured view, too."""
    return [field.name for field in fields(ViewGeometry) if field.name in ViewConfig.model_fields]


class Box(NamedTuple):
    """Where a view lies in its image, in pixels, and how it is turned."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    vflip: bool


_ROW = np.dtype(
    [
        *((f"{name}_{end}", "f8") for name in ("scale", "ratio") for end in ("low", "high")),
        *((name, "f8") for name in ("flip_p", "vflip_p", "centre", "threshold", "background_p")),
        ("crop", "i8"),
    ]
)


def geometry_table(views: Sequence[ViewGeometry]) -> npt.NDArray[Any]:
    """Return (V,) records, what `draw_view` must know of each view."""
    rows = []
    for view in views:
        kind, threshold = crop_rule(view.crop)
        shares = (view.flip_p, view.vflip_p, view.centre, threshold, view.background_p)
        rows.append((*view.scale, *view.ratio, *shares, _CROPS[kind]))
    return np.array(rows, dtype=_ROW)


def needs_mask(table: npt.NDArray[Any]) -> bool:
    """Return whether some view of a `geometry_table` needs `fill_integral` before `draw_view`."""
    return bool(((table["crop"] != _RANDOM) & (table["centre"] == 0.0)).any())


@njit(cache=True)
def draw_box(key, height, width, scale_low, scale_high, ratio_low, ratio_high, first_draw):
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
def centre_box(height, width, share):
    """Return the central square box whose side is ``share`` of the image's shorter side.

    With share 224/256 this is the area that Resize(256) and CenterCrop(224) show.
    """
    side = max(1, round(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


@njit(cache=True)
def _row_box(key, height, width, row, first_draw):
    low, high = row.ratio_low, row.ratio_high
    return draw_box(key, height, width, row.scale_low, row.scale_high, low, high, first_draw)


@njit(cache=True)
def draw_view(key, height, width, row, integral):
    """Return the `Box` of one view.

    row: the view's record of `geometry_table`. integral: of the sample's mask, see
    `fill_integral`; read only if the row's crop needs it (`needs_mask`), so it may hold anything
    otherwise. The box is that of `draw_box` under the crop ``random``. ``foreground>=T`` draws up
    to `FOREGROUND_TRIES` independent boxes, that one first, and takes the first whose foreground
    share (`foreground_share`) reaches T, else the last; ``background`` takes that of as many with
    the least. ``center-on-foreground`` keeps the first box's size and moves it by
    `centre_on_foreground`. The flips are the same under all crops.
    """
    flip, vflip = False, False
    if row.centre > 0.0:
        top, left, box_h, box_w = centre_box(height, width, row.centre)
    else:
        top, left, box_h, box_w = _row_box(key, height, width, row, 0)
        if row.crop == _FOREGROUND:
            for number in range(1, FOREGROUND_TRIES):
                share = foreground_share(integral, height, width, top, left, box_h, box_w)
                if share >= row.threshold:
                    break
                top, left, box_h, box_w = _row_box(key, height, width, row, number * _BOX_DRAWS)
        elif row.crop == _BACKGROUND:
            least = foreground_share(integral, height, width, top, left, box_h, box_w)
            for number in range(1, FOREGROUND_TRIES):
                y, x, h, w = _row_box(key, height, width, row, number * _BOX_DRAWS)
                share = foreground_share(integral, height, width, y, x, h, w)
                if share < least:
                    least, top, left, box_h, box_w = share, y, x, h, w
        elif row.crop == _CENTRED:
            point = uniform(key, _POINT_DRAW)
            top, left = centre_on_foreground(
                point, integral, height, width, top, left, box_h, box_w
            )
        flip = uniform(key, _FLIP_DRAW) < row.flip_p
        vflip = uniform(key, _FLIP_DRAW + 1) < row.vflip_p
    return Box(top, left, box_h, box_w, flip, vflip)


@njit(cache=True)
def centre_on_foreground(draw, integral, height, width, top, left, box_h, box_w):
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
    y = np.searchsorted(integral[1:, size], rank, side="right")
    row = integral[y + 1, 1:] - integral[y, 1:]
    x = np.searchsorted(row, rank - integral[y, size], side="right")
    # floor(a / 2b + 1/2): the corner whose centre is nearest to (2 y + 1) / 2 mask pixels.
    new_top = ((2 * y + 1) * height - box_h * size + size) // (2 * size)
    new_left = ((2 * x + 1) * width - box_w * size + size) // (2 * size)
    return min(max(new_top, 0), height - box_h), min(max(new_left, 0), width - box_w)
