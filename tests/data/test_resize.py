"""The integer resize against torchvision's antialiased bilinear, and its exact properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from harl_fast.data.views.resize import padded, reduce_planes, words_size, write_planes, write_view
from tests.betons import smooth_noise

LONGEST = 256


def parts_of(side: int) -> np.ndarray:
    return np.full((3, padded(side), padded(side)), 7, np.uint16)


def resize_rgb(image, placed, size: int, write=write_view) -> np.ndarray:
    parts, words = parts_of(size), np.empty(words_size(LONGEST, size, 3), np.uint16)
    rows = image.reshape(1, image.shape[0], -1)
    reduce_planes(rows, 3, (0, 0), (1, 1), image.shape[:2], placed, size, words, parts)
    shape = (size, size, 3) if write is write_view else (3, size, size)
    out = np.empty(shape, np.uint8)
    write(parts, False, np.empty_like(parts), out)
    return out


def resize_ycc(planes, factors, placed, size: int) -> np.ndarray:
    parts, words = parts_of(size), np.empty(words_size(LONGEST, size, 1), np.uint16)
    shape, whole = planes[0].shape, (1, 1)
    reduce_planes(planes[0][None], 1, (0, 0), whole, shape, placed, size, words, parts[0:1])
    chroma = np.stack(planes[1:])
    half = chroma.shape[1:]
    reduce_planes(chroma, 1, (0, 0), factors, half, placed, size, words, parts[1:3])
    out = np.empty((size, size, 3), np.uint8)
    write_view(parts, True, np.empty_like(parts), out)
    return out


def torchvision_resize(image: np.ndarray, placed, size: int) -> np.ndarray:
    top, left, box_h, box_w, flip, vflip = placed
    x = torch.from_numpy(image[top : top + box_h, left : left + box_w].copy()).permute(2, 0, 1)
    x = functional.resize(x.double(), [size, size], antialias=True)
    x = functional.horizontal_flip(x) if flip else x
    x = functional.vertical_flip(x) if vflip else x
    return x.permute(1, 2, 0).numpy()


def fancy_upsampled(plane: np.ndarray, factors, shape) -> np.ndarray:
    """libjpeg's triangle upsampling (jdsample.c), along one axis after the other, unrounded."""
    out = plane.astype(np.float64)
    for axis, factor in enumerate(factors):
        if factor == 2:
            before = np.take(out, np.maximum(np.arange(out.shape[axis]) - 1, 0), axis)
            last = out.shape[axis] - 1
            after = np.take(out, np.minimum(np.arange(out.shape[axis]) + 1, last), axis)
            pairs = np.stack([0.75 * out + 0.25 * before, 0.75 * out + 0.25 * after], axis + 1)
            out = pairs.reshape(*out.shape[:axis], -1, *out.shape[axis + 1 :])
    return out[: shape[0], : shape[1]]


def to_rgb(ycc: np.ndarray) -> np.ndarray:
    """JFIF's equations in float64, without clamping."""
    y, cb, cr = ycc[..., 0], ycc[..., 1] - 128.0, ycc[..., 2] - 128.0
    green = y - 0.344136286 * cb - 0.714136286 * cr
    return np.stack([y + 1.402 * cr, green, y + 1.772 * cb], -1)


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int):
    box_h, box_w = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - box_h)), draw(st.integers(0, width - box_w))
    return top, left, box_h, box_w, draw(st.booleans()), draw(st.booleans())


SIZES = st.sampled_from([1, 7, 32, 64, 96, 224])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), boxes(150, 190), SIZES)
def test_it_is_torchvisions_antialiased_bilinear_within_one_level(seed, placed, size) -> None:
    image = smooth_noise(seed, 150, 190)
    # Half a level from the one rounding, a little from the weights' 16 bits.
    expected = torchvision_resize(image, placed, size)
    assert np.abs(resize_rgb(image, placed, size) - expected).max() <= 0.75


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    size_yx=st.tuples(st.integers(1, 90), st.integers(1, 110)),
    factors=st.sampled_from([(1, 1), (2, 2), (1, 2), (2, 1)]),
    size=SIZES,
    data=st.data(),
)
def test_planes_of_any_chroma_are_upsampled_converted_and_resized(
    seed, size_yx, factors, size, data
) -> None:
    height, width = size_yx
    noise = smooth_noise(seed, height, width)
    down, across = factors
    planes = [
        np.ascontiguousarray(noise[..., 0]),
        np.ascontiguousarray(noise[::down, ::across, 1] // 4 + 96),
        np.ascontiguousarray(noise[::down, ::across, 2] // 4 + 96),
    ]
    placed = data.draw(boxes(height, width))
    full = [planes[0].astype(np.float64)]
    full += [fancy_upsampled(plane, factors, size_yx) for plane in planes[1:]]
    # The resize is linear, so it may come before the conversion as long as nothing is clamped.
    expected = np.clip(to_rgb(torchvision_resize(np.stack(full, -1), placed, size)), 0, 255)
    assert np.abs(resize_ycc(planes, factors, placed, size) - expected).max() <= 0.8


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_a_constant_picture_stays_constant(level: int) -> None:
    image = np.full((61, 83, 3), level, np.uint8)
    assert (resize_rgb(image, (3, 5, 50, 71, False, False), 40) == level).all()
    planes = [np.full((61, 83), level, np.uint8), *[np.full((31, 42), 128, np.uint8)] * 2]
    assert (resize_ycc(planes, (2, 2), (3, 5, 50, 71, False, False), 40) == level).all()


def test_a_very_large_reduction_keeps_the_level() -> None:
    image = np.full((960, 250, 3), 200, np.uint8)
    assert (resize_rgb(image, (0, 0, 960, 250, False, False), 8) == 200).all()


def test_a_box_of_the_views_size_is_copied_bit_for_bit() -> None:
    image = smooth_noise(0, 64, 80)
    out = resize_rgb(image, (9, 17, 48, 48, True, True), 48)
    assert np.array_equal(out, image[9:57, 17:65][::-1, ::-1])


def test_planes_and_interleaved_pixels_are_the_same() -> None:
    image, placed = smooth_noise(1, 100, 120), (5, 9, 80, 71, True, False)
    planes = resize_rgb(image, placed, 50, write_planes)
    assert np.array_equal(planes.transpose(1, 2, 0), resize_rgb(image, placed, 50))
