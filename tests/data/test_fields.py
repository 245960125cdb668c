"""Masks survive packing and storing bit by bit, and shrink by exact area."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from ffcv.reader import Reader
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harl_fast.data.container.fields import (
    BitMaskField,
    StoredMask,
    pack_mask,
    resize_mask,
    unpack_mask,
)
from harl_fast.errors import DataError
from tests.betons import plain_item, write_beton

SIDES = st.integers(1, 40)


def masks(shape: st.SearchStrategy[tuple[int, int]]) -> st.SearchStrategy[npt.NDArray[np.bool_]]:
    return shape.flatmap(lambda size: arrays(np.bool_, size))


def overlaps(cells: int, pixels: int) -> npt.NDArray[np.int64]:
    """Return the (cells, pixels) overlap of equal cells with equal pixels on a line.

    In units of 1 / (cells * pixels) of the line, in which all edges are whole numbers.
    """
    cell, pixel = np.arange(cells)[:, None], np.arange(pixels)[None]
    stop = np.minimum((cell + 1) * pixels, (pixel + 1) * cells)
    start = np.maximum(cell * pixels, pixel * cells)
    return np.maximum(stop - start, 0)


def area_reference(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    height, width = mask.shape
    covered = overlaps(size, height) @ mask.astype(np.int64) @ overlaps(size, width).T
    return 2 * covered >= height * width


@given(masks(st.sampled_from([(8, 8), (16, 16), (64, 64)])))
def test_packing_and_unpacking_gives_the_mask_back(mask: npt.NDArray[np.bool_]) -> None:
    packed = pack_mask(mask)
    assert packed.shape == (mask.size // 8,)
    np.testing.assert_array_equal(unpack_mask(packed, size=len(mask)), mask)


def test_the_first_pixel_is_the_highest_bit_of_the_first_byte() -> None:
    mask = np.zeros((16, 16), np.bool_)
    mask[0, 0] = mask[1, 9] = True
    expected = np.zeros(32, np.uint8)
    expected[0], expected[3] = 0b1000_0000, 0b0100_0000
    np.testing.assert_array_equal(pack_mask(mask), expected)


@settings(deadline=None)
@given(masks(st.tuples(SIDES, SIDES)), st.sampled_from([8, 16, 24]))
def test_resizing_keeps_cells_that_are_at_least_half_covered(
    mask: npt.NDArray[np.bool_], size: int
) -> None:
    np.testing.assert_array_equal(resize_mask(mask, size=size), area_reference(mask, size))


@given(masks(st.just((16, 16))))
def test_an_equal_size_changes_nothing_and_enlarging_repeats_pixels(
    mask: npt.NDArray[np.bool_],
) -> None:
    np.testing.assert_array_equal(resize_mask(mask, size=16), mask)
    np.testing.assert_array_equal(resize_mask(mask, size=32), np.kron(mask, np.ones((2, 2))) > 0)


def test_a_tie_counts_as_foreground_and_less_does_not() -> None:
    half = np.zeros((160, 160), np.bool_)
    half[:, :10] = True
    assert resize_mask(half, size=8)[:, 0].all()
    half[0, 0] = False
    assert not resize_mask(half, size=8)[0, 0]


def test_integers_are_foreground_where_not_zero_and_floats_are_coverage() -> None:
    levels = np.zeros((8, 8), np.uint8)
    levels[0, :3] = [1, 128, 255]
    np.testing.assert_array_equal(resize_mask(levels, size=8), levels > 0)
    coverage = np.full((8, 8), 0.49)
    coverage[3, 4] = 0.5
    assert np.argwhere(resize_mask(coverage, size=8)).tolist() == [[3, 4]]


@pytest.mark.parametrize("size", [0, -8, 12, 1032])
def test_a_size_that_does_not_pack_is_refused(size: int) -> None:
    with pytest.raises(DataError, match="multiple of 8"):
        BitMaskField(size)


def test_the_size_travels_in_the_container_and_another_format_is_refused() -> None:
    arguments = BitMaskField(48).to_binary()[0]
    assert arguments.shape == (1024,)
    assert BitMaskField.from_binary(arguments).size == 48
    arguments[0] = 9
    with pytest.raises(DataError, match=r"format 9.*make beton"):
        BitMaskField.from_binary(arguments)


def test_a_mask_of_another_size_is_refused() -> None:
    field = BitMaskField(64)
    wrong = StoredMask(np.zeros(8, np.uint8), 10, 10)
    with pytest.raises(DataError, match=r"\(512,\)"):
        field.encode(np.zeros(1, field.metadata_type), wrong, lambda count: (0, np.zeros(count)))


def test_ffcv_writes_and_finds_every_mask(tmp_path: Path) -> None:
    path = write_beton(tmp_path / "x.beton", plain_item, count=12, mask_size=64)
    reader = Reader(str(path), {"mask": BitMaskField})
    data = np.fromfile(path, np.uint8)
    assert reader.handlers["mask"].size == 64
    for index in range(12):
        image, mask, _ = plain_item(index)
        row = reader.metadata["f1"][index]
        assert (row["height"], row["width"]) == image.shape[:2]
        start = int(row["data_ptr"])
        np.testing.assert_array_equal(data[start : start + 512], pack_mask(mask))
