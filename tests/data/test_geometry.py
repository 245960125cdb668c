"""Boxes and flips against torchvision's RandomResizedCrop; cells against exact fractions."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy import stats
from torchvision.transforms import v2

from harl_fast import rng
from harl_fast.config import ViewConfig
from harl_fast.data.container.fields import pack_mask
from harl_fast.data.views.cells import cell_coverage
from harl_fast.data.views.crop import (
    ViewGeometry,
    draw_box,
    draw_view,
    geometry_table,
)
from harl_fast.errors import ConfigError

DRAWS = 6000
NO_MASK = np.zeros((9, 9), np.int32)
"""What a random crop is given as integral, and does not read."""


def our_boxes(height: int, width: int, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) -> np.ndarray:
    keys = [rng.stream(0, 0, sample, 0, rng.GEOMETRY) for sample in range(DRAWS)]
    return np.array([draw_box(np.uint64(key), height, width, *scale, *ratio, 0) for key in keys])


def torchvision_boxes(height: int, width: int, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.zeros(3, height, width)
    rows = []
    for _ in range(DRAWS):
        place = crop.make_params([image])
        rows.append((place["top"], place["left"], place["height"], place["width"]))
    return np.array(rows)


@pytest.mark.parametrize("shape", [(400, 500), (375, 250), (96, 96), (60, 300)])
def test_boxes_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    ours, theirs = our_boxes(*shape), torchvision_boxes(*shape)
    for column in range(4):
        # Eight comparisons of true nulls at 1e-4 each: a false alarm in 0.1 % of code changes.
        test = stats.ks_2samp(ours[:, column], theirs[:, column])
        assert test.pvalue > 1e-4, ("top", "left", "height", "width")[column]


@pytest.mark.parametrize("shape", [(20, 400), (400, 20)])
def test_the_fall_back_is_torchvisions_central_box(shape: tuple[int, int]) -> None:
    # A share of 0.9 to 1 of a 1:20 image never fits, so all tries fail.
    ours = our_boxes(*shape, scale=(0.9, 1.0))[:50]
    theirs = torchvision_boxes(*shape, scale=(0.9, 1.0))[:50]
    assert np.array_equal(ours, theirs)


def test_flips_come_at_their_rates() -> None:
    row = geometry_table([ViewGeometry(size_px=8, cells=2, flip_p=0.5, vflip_p=0.25)])[0]
    keys = [np.uint64(rng.stream(0, 0, s, 0, rng.GEOMETRY)) for s in range(DRAWS)]
    flips = np.array([draw_view(key, 100, 100, row, NO_MASK)[4:] for key in keys])
    # 5 standard errors of a binomial share.
    assert abs(flips[:, 0].mean() - 0.5) < 5 * math.sqrt(0.25 / DRAWS)
    assert abs(flips[:, 1].mean() - 0.25) < 5 * math.sqrt(0.1875 / DRAWS)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**63 - 1))
def test_boxes_lie_inside_the_image(height: int, width: int, sample: int) -> None:
    row = geometry_table([ViewGeometry(size_px=8, cells=2)])[0]
    key = np.uint64(rng.stream(1, 2, sample, 0, rng.GEOMETRY))
    top, left, box_h, box_w, _, _ = draw_view(key, height, width, row, NO_MASK)
    assert top >= 0 and top + box_h <= height and box_h >= 1
    assert left >= 0 and left + box_w <= width and box_w >= 1


def exact_coverage(mask, height, width, placed, cells) -> list[list[Fraction]]:
    """Area of mask inside each cell, by rational arithmetic over every pair."""
    top, left, box_h, box_w, flip, vflip = placed
    size = len(mask)

    def overlaps(start: int, length: int, side: int) -> list[list[Fraction]]:
        edges = [start + Fraction(length * cell, cells) for cell in range(cells + 1)]
        pixels = [Fraction(side * pixel, size) for pixel in range(size + 1)]
        return [
            [
                max(Fraction(0), min(edges[c + 1], pixels[p + 1]) - max(edges[c], pixels[p]))
                for p in range(size)
            ]
            for c in range(cells)
        ]

    ys, xs = overlaps(top, box_h, height), overlaps(left, box_w, width)
    area = Fraction(box_h * box_w, cells * cells)
    rows = [
        [
            sum(ys[r][y] * xs[c][x] for y in range(size) for x in range(size) if mask[y, x]) / area
            for c in range(cells)
        ]
        for r in range(cells)
    ]
    rows = [row[::-1] for row in rows] if flip else rows
    return rows[::-1] if vflip else rows


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cells_are_the_exact_area_coverage(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(2, 90)), data.draw(st.integers(2, 90))
    box_h, box_w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_h)), data.draw(st.integers(0, width - box_w))
    placed = (top, left, box_h, box_w, data.draw(st.booleans()), data.draw(st.booleans()))
    cells = data.draw(st.integers(1, 5))
    mask = np.random.default_rng(data.draw(st.integers(0, 999))).random((8, 8)) < 0.5
    out = np.empty((cells, cells), np.float32)
    cell_coverage(pack_mask(mask), 8, height, width, placed, out)
    expected = exact_coverage(mask, height, width, placed, cells)
    assert np.array_equal(out, np.array(expected, dtype=np.float64).astype(np.float32))


@njit
def _overlap(start_a, stop_a, start_b, stop_b):
    return max(0, min(stop_a, stop_b) - max(start_a, start_b))


@njit
def bit_by_bit(packed, size, height, width, placed, out):
    """Fill the cells' coverage by asking every bit that a cell touches."""
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


@settings(max_examples=300)
@given(
    st.integers(0, 2**62),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.sampled_from([8, 24, 64, 128]),
    st.integers(1, 15),
)
def test_cells_equal_the_bit_by_bit_sums(
    sample: int, height: int, width: int, size: int, cells: int
) -> None:
    """To the last bit, for real boxes at the sizes that training uses."""
    row = geometry_table([ViewGeometry(size_px=8, cells=2, scale=(0.01, 1.0), vflip_p=0.5)])[0]
    placed = draw_view(np.uint64(sample), height, width, row, NO_MASK)
    density = (0.0, 1.0, 0.5, 0.02)[sample % 4]
    packed = pack_mask(np.random.default_rng(sample).random((size, size)) < density)
    ours, theirs = np.empty((2, cells, cells), np.float32)
    cell_coverage(packed, size, height, width, placed, ours)
    bit_by_bit(packed, size, height, width, placed, theirs)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size_px": 0}, "size_px 0: give a whole number from 1 on"),
        ({"size_px": "32"}, "size_px '32': give a whole number from 1 on"),
        ({"size_px": None}, "size_px None: give a whole number from 1 on"),
        ({"cells": 0}, "cells 0: give a whole number from 1 on"),
        ({"cells": "7"}, "cells '7': give a whole number from 1 on"),
        ({"cells": 1.5}, "cells 1.5: give a whole number from 1 on"),
        ({"cells": 9}, "a view of 8 px with 9 cells per side"),
        ({"scale": (0.0, 0.0)}, "scale"),
        ({"scale": (0.5, 0.2)}, "scale: the first value 0.5 is above"),
        ({"ratio": (float("nan"), 1.0)}, "ratio"),
        ({"flip_p": 1.5}, "flip_p"),
        ({"background_p": -0.1}, "background_p"),
        ({"crop": "middle"}, "crop 'middle' is none of"),
        ({"centre": 1.5}, "centre 1.5: give a finite number from 0 to 1"),
        ({"centre": "0.5"}, "centre '0.5': give a finite number from 0 to 1"),
    ],
)
def test_a_senseless_view_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ViewGeometry(**{"size_px": 8, "cells": 2} | wrong)


def test_a_configured_view_is_cut_as_its_keys_say() -> None:
    keys = {"size_px": 48, "scale": (0.3, 0.6), "ratio": (1.0, 2.0), "flip_p": 0.1}
    keys |= {"vflip_p": 0.2, "crop": "background", "background_p": 0.4}
    geometry = ViewGeometry.of(ViewConfig(**keys), cells=3)
    assert dataclasses.asdict(geometry) == {**keys, "cells": 3, "centre": 0.0}
