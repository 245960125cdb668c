"""What an image costs the loader: a sum over what one decode and several cuts do.

    t = image + stored S + decoded S U + views (view + cut S A + written P) + colours P

in microseconds of one core, with S the stored image's megapixels, U the share of it that the views'
boxes cover together (which is what is decoded of a JPEG), A the share that a view's box covers, and
P the view's own megapixels. The constants, per store, are fitted by `benchmarks/plan.py`; U and A
are means over boxes drawn by the loader's own rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harl_fast.data.container.stores import Store
from harl_fast.data.views.crop import ViewGeometry, draw_view, geometry_table
from harl_fast.plan.hardware import MEGA, Case, hardware
from harl_fast.rng import GEOMETRY, stream

STORED_BYTES = {"raw": 3.0, "yuv420": 1.5}
"""Bytes per pixel; those of a JPEG depend on its content."""
ASPECT = 4 / 3
"""Width over height of the images assumed."""
_DRAWS = 400
_SEGMENT_PX = (16, 64)
"""A JPEG is decoded by whole segments, of so many rows and columns at least."""


class Shares(NamedTuple):
    """Mean shares of an image's area."""

    union: float
    """Of what all boxes cover together, in whole segments of a JPEG."""
    boxes: tuple[float, ...]
    """Of each view's box."""


def stored_bytes(store: Store, *, megapixels: float) -> float:
    """Return the mean bytes of an image."""
    jpg = hardware().store["jpg_bytes_per_pixel"].value
    per_pixel = sum(share * STORED_BYTES.get(name, jpg) for name, share in store.shares.items())
    return megapixels * MEGA * per_pixel


@functools.cache
def shares(views: tuple[ViewGeometry, ...], *, height: int, width: int) -> Shares:
    """Return the mean shares of images of one size; masks are taken to cover all of them."""
    table = geometry_table(views)
    integral = np.outer(np.arange(9), np.arange(9)).astype(np.int32)
    union, boxes = 0.0, np.zeros(len(views))
    for sample in range(_DRAWS):
        found = []
        for view in range(len(views)):
            key = np.uint64(stream(0, 0, sample, view, GEOMETRY))
            found.append(draw_view(key, height, width, table[view], integral)[:4])
        top, left, tall, wide = np.array(found).T
        boxes += tall * wide
        rows = min(height, (top + tall).max() - top.min() + _SEGMENT_PX[0])
        columns = min(width, (left + wide).max() - left.min() + _SEGMENT_PX[1])
        union += rows * columns
    area = _DRAWS * height * width
    return Shares(union / area, tuple(float(box) / area for box in boxes))


def image_us(
    store: Store,
    views: Sequence[ViewGeometry],
    *,
    megapixels: float,
    coloured: bool,
    case: Case = "likely",
) -> float:
    """Return the microseconds of one core, among others at work, per image.

    megapixels: of a stored image, taken to be 4 : 3. coloured: whether the
    loader colours the views.
    """
    costs = hardware().loader
    height = math.sqrt(megapixels * MEGA / ASPECT)
    covered = shares(tuple(views), height=round(height), width=round(height * ASPECT))
    written = sum(view.size_px**2 for view in views) / MEGA
    total = written * costs.colour_us_per_mpx.value if coloured else 0.0
    for name, share in store.shares.items():
        # The files' own JPEGs have no segments to leave out.
        union = 1.0 if name == "passthrough" else covered.union
        amounts = {
            "image": 1.0,
            "stored": megapixels,
            "decoded": megapixels * union,
            "view": len(views),
            "cut": megapixels * sum(covered.boxes),
            "written": written,
        }
        own = costs.stores["jpg" if name == "passthrough" else name]
        total += share * sum(own[what].value * amount for what, amount in amounts.items())
    return total / (costs.speed.at(case) * costs.scaling.value)
