"""The integer resize against torchvision's antialiased bilinear, and its exact properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from harl_fast.data.resample import resize_box
from tests.betons import smooth_noise


def torchvision_resize(image, placed, size):
    top, left, box_h, box_w, flip, vflip = placed
    x = torch.from_numpy(image[top : top + box_h, left : left + box_w].copy()).permute(2, 0, 1)
    x = functional.resize(x.float(), [size, size], antialias=True)
    x = functional.horizontal_flip(x) if flip else x
    x = functional.vertical_flip(x) if vflip else x
    return x.permute(1, 2, 0).numpy()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_torchvisions_antialiased_bilinear_within_one_level(data: st.DataObject) -> None:
    image = smooth_noise(data.draw(st.integers(0, 99)), 150, 190)
    box_h, box_w = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 190))
    top, left = data.draw(st.integers(0, 150 - box_h)), data.draw(st.integers(0, 190 - box_w))
    placed = (top, left, box_h, box_w, data.draw(st.booleans()), data.draw(st.booleans()))
    size = data.draw(st.sampled_from([1, 7, 32, 64, 96, 224]))
    out = np.empty((size, size, 3), np.uint8)
    resize_box(image, placed, out)
    # Against float arithmetic: half a level from each of the two roundings, a little from weights.
    assert np.abs(out - torchvision_resize(image, placed, size)).max() <= 1.1


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_a_constant_picture_stays_constant(level: int) -> None:
    image = np.full((61, 83, 3), level, np.uint8)
    out = np.empty((40, 40, 3), np.uint8)
    resize_box(image, (3, 5, 50, 71, False, False), out)
    assert (out == level).all()


def test_a_box_of_the_views_size_is_copied_bit_for_bit() -> None:
    image = smooth_noise(0, 64, 80)
    out = np.empty((48, 48, 3), np.uint8)
    resize_box(image, (9, 17, 48, 48, True, True), out)
    assert np.array_equal(out, image[9:57, 17:65][::-1, ::-1])
