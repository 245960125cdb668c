"""Mask-aware crops against a plain account of their rules, with exact shares of the mask."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harl_fast import rng
from harl_fast.config import ViewConfig
from harl_fast.data.container.fields import pack_mask
from harl_fast.data.views.cells import fill_integral, foreground_share
from harl_fast.data.views.crop import (
    FOREGROUND_TRIES,
    ViewGeometry,
    draw_view,
    geometry_table,
    needs_mask,
)
from harl_fast.errors import ConfigError

Mask = npt.NDArray[np.bool_]
SIDES = st.integers(1, 300)
KEYS = st.integers(0, 2**63 - 1)


def row(crop: str, **others: object) -> npt.NDArray[np.float64]:
    view = ViewGeometry(size_px=8, cells=2, crop=crop, **others)  # type: ignore[arg-type]
    return geometry_table([view])[0]


def integral_of(mask: Mask) -> npt.NDArray[np.int32]:
    out = np.full((len(mask) + 1, len(mask) + 1), -7, np.int32)
    fill_integral(pack_mask(mask), len(mask), out)
    return out


def blob(seed: int, size: int = 16) -> Mask:
    """Return a mask: empty, full, one pixel, a rectangle, or noise."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.bool_)
    kind = seed % 5
    if kind == 1:
        mask[:] = True
    elif kind == 2:
        mask[tuple(generator.integers(0, size, 2))] = True
    elif kind == 3:
        y, x = generator.integers(0, size, 2)
        mask[y : y + 5, x : x + 7] = True
    elif kind == 4:
        mask = generator.random((size, size)) < 0.4
    return mask


def exact_share(mask: Mask, height: int, width: int, box: tuple[int, ...]) -> Fraction:
    """Return the box's share of foreground, from the overlap of every row and column."""
    top, left, box_h, box_w = (int(edge) for edge in box)
    size = len(mask)

    def overlaps(start: int, length: int, side: int) -> npt.NDArray[np.int64]:
        pixels = np.arange(size, dtype=np.int64) * side
        stop = np.minimum(pixels + side, (start + length) * size)
        return np.maximum(0, stop - np.maximum(pixels, start * size))

    area = overlaps(top, box_h, height) @ mask.astype(np.int64) @ overlaps(left, box_w, width)
    return Fraction(int(area), box_h * box_w * size * size)


def tries(key: np.uint64, height: int, width: int) -> list[tuple[int, ...]]:
    """Return all boxes that foreground>=T may take: the last of each limit on the tries."""
    empty = integral_of(np.zeros((8, 8), np.bool_))
    first = draw_view(key, height, width, row("random"), empty)[:4]
    last = draw_view(key, height, width, row("foreground>=1"), empty)[:4]
    return [first, last]


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from([8, 16, 64]))
def test_the_integral_counts_the_pixels_before_each_corner(seed: int, size: int) -> None:
    mask = blob(seed, size)
    expected = np.zeros((size + 1, size + 1), np.int64)
    expected[1:, 1:] = mask.cumsum(0).cumsum(1)
    np.testing.assert_array_equal(integral_of(mask), expected)


@given(st.data(), SIDES, SIDES, st.integers(0, 999))
def test_the_share_of_a_box_is_exact(
    data: st.DataObject, height: int, width: int, seed: int
) -> None:
    mask = blob(seed)
    box_h, box_w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - box_h)), data.draw(st.integers(0, width - box_w))
    ours = foreground_share(integral_of(mask), height, width, top, left, box_h, box_w)
    assert ours == float(exact_share(mask, height, width, (top, left, box_h, box_w)))


def test_large_pictures_and_masks_do_not_overflow() -> None:
    full = integral_of(np.ones((1024, 1024), np.bool_))
    assert foreground_share(full, 65535, 65535, 0, 0, 65535, 65535) == 1.0
    assert foreground_share(full, 65535, 65535, 13, 17, 65001, 60007) == 1.0


@given(KEYS, SIDES, SIDES, st.integers(0, 999), st.sampled_from([0.01, 0.2, 0.5, 0.9, 1.0]))
def test_foreground_takes_the_first_box_with_enough_and_else_the_last(
    sample: int, height: int, width: int, seed: int, threshold: float
) -> None:
    """Where the first box has enough it is kept; another one has enough or is the last."""
    mask, key = blob(seed), np.uint64(sample)
    integral = integral_of(mask)
    first, last = tries(key, height, width)
    placed = draw_view(key, height, width, row(f"foreground>={threshold}"), integral)
    shares = [float(exact_share(mask, height, width, box)) for box in (first, placed[:4])]
    if shares[0] >= threshold:
        assert placed[:4] == first
    else:
        assert shares[1] >= threshold or placed[:4] == last
    assert placed[4:] == draw_view(key, height, width, row("random"), integral)[4:]


@given(KEYS, SIDES, SIDES, st.integers(0, 999))
def test_background_takes_no_box_with_more_foreground_than_those_known(
    sample: int, height: int, width: int, seed: int
) -> None:
    mask, key = blob(seed), np.uint64(sample)
    placed = draw_view(key, height, width, row("background"), integral_of(mask))
    shares = [exact_share(mask, height, width, box) for box in tries(key, height, width)]
    assert exact_share(mask, height, width, placed[:4]) <= min(shares)
    assert placed[4:] == draw_view(key, height, width, row("random"), integral_of(mask))[4:]


def test_of_five_boxes_the_one_with_least_foreground_is_taken() -> None:
    """Boxes half of which have foreground all have some with probability 1/32."""
    mask = np.zeros((64, 64), np.bool_)
    mask[:, 32:] = True
    table = row("background", scale=(0.0001, 0.0001), ratio=(1.0, 1.0))
    boxes = [draw_view(np.uint64(key), 640, 640, table, integral_of(mask)) for key in range(4000)]
    touched = sum(box[1] + box[3] > 320 for box in boxes)
    assert touched == pytest.approx(4000 / 32, abs=4 * (4000 / 32) ** 0.5)


def test_the_number_of_boxes_tried_is_five() -> None:
    """A box that has enough with probability 1/2 is missed with probability 1/32."""
    mask = np.zeros((64, 64), np.bool_)
    mask[:, 32:] = True
    integral, still = integral_of(mask), {"scale": (0.01, 0.01), "ratio": (1.0, 1.0)}
    table = row("foreground>=0.5", **still)
    keys = [np.uint64(rng.stream(3, 0, sample, 0, rng.GEOMETRY)) for sample in range(20000)]
    boxes = [draw_view(key, 1000, 1000, table, integral)[:4] for key in keys]
    missed = np.mean([float(exact_share(mask, 1000, 1000, box)) < 0.5 for box in boxes])
    expected = 0.5**FOREGROUND_TRIES
    # 5 standard errors; the corner falls on one of 901 places, which moves 1/2 by less.
    assert FOREGROUND_TRIES == 5
    assert abs(missed - expected) < 5 * (expected / len(keys)) ** 0.5


def test_the_last_box_is_drawn_as_the_first_and_apart_from_it() -> None:
    keys = [np.uint64(rng.stream(7, 0, sample, 0, rng.GEOMETRY)) for sample in range(3000)]
    boxes = np.array([tries(key, 400, 500) for key in keys])
    for column in range(4):
        first, last = boxes[:, 0, column], boxes[:, 1, column]
        # Eight true nulls at 1e-4 each.
        assert stats.ks_2samp(first, last).pvalue > 1e-4
        assert stats.spearmanr(first, last).pvalue > 1e-4


@given(KEYS, SIDES, SIDES, st.integers(0, 999))
def test_a_centred_box_has_the_random_ones_size_and_holds_foreground(
    sample: int, height: int, width: int, seed: int
) -> None:
    mask, key = blob(seed), np.uint64(sample)
    integral = integral_of(mask)
    plain = draw_view(key, height, width, row("random"), integral)
    placed = draw_view(key, height, width, row("center-on-foreground"), integral)
    top, left, box_h, box_w = placed[:4]
    assert (box_h, box_w, *placed[4:]) == plain[2:]
    assert 0 <= top <= height - box_h and 0 <= left <= width - box_w
    if mask.any():
        assert exact_share(mask, height, width, placed[:4]) > 0
    else:
        assert placed == plain


def test_centres_are_spread_evenly_over_the_foreground_pixels() -> None:
    mask = np.zeros((16, 16), np.bool_)
    mask[3, 2] = mask[3, 14] = mask[9, 5] = mask[10, 5] = mask[15, 8] = True
    integral = integral_of(mask)
    table = row("center-on-foreground", scale=(0.001, 0.001), ratio=(1.0, 1.0))
    counts = {(int(y), int(x)): 0 for y, x in np.argwhere(mask)}
    for sample in range(5000):
        key = np.uint64(rng.stream(1, 0, sample, 0, rng.GEOMETRY))
        top, left, box_h, box_w = draw_view(key, 320, 640, table, integral)[:4]
        # A mask pixel is 20 x 40 image pixels: the nearest whole corner is at most half away.
        y, x = (top + box_h / 2) / 20, (left + box_w / 2) / 40
        assert abs(y % 1 - 0.5) <= 0.5 / 20 and abs(x % 1 - 0.5) <= 0.5 / 40
        counts[int(y), int(x)] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_a_box_at_the_border_is_moved_inside() -> None:
    mask = np.zeros((8, 8), np.bool_)
    mask[0, 7] = True
    table = row("center-on-foreground", scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert draw_view(np.uint64(5), 80, 80, table, integral_of(mask))[:4] == (0, 40, 40, 40)


def test_only_mask_aware_views_ask_for_the_integral() -> None:
    plain = ViewGeometry(size_px=8, cells=2)
    aware = ViewGeometry(size_px=8, cells=2, crop="foreground>=0.2")
    still = ViewGeometry(size_px=8, cells=2, crop="center-on-foreground", centre=0.875)
    assert not needs_mask(geometry_table([plain, plain, still]))
    assert needs_mask(geometry_table([plain, aware]))


@pytest.mark.parametrize(
    "crop", ["foreground>=0", "foreground>=1.01", "foreground>=nan", "foreground", "centre", ""]
)
def test_a_crop_that_is_no_rule_is_refused(crop: str) -> None:
    with pytest.raises(ConfigError, match="none of random, foreground>=T"):
        ViewGeometry(size_px=8, cells=2, crop=crop)
    with pytest.raises(ValueError, match="none of random, foreground>=T"):
        ViewConfig(crop=crop)
