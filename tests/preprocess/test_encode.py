"""Every way of storing a picture gives it back: Pillow is the judge, its formulas the oracle."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from harl_fast.data.container.fields import MODE_JPG, MODE_RAW, MODE_YUV420, stored_bytes
from harl_fast.data.container.stores import Store, parse_store
from harl_fast.errors import ConfigError
from preprocess.encode import (
    encode,
    encode_jpeg,
    encode_yuv420,
    restart_interval,
)
from preprocess.images.arrays import Pixels
from tests.preprocess.support import photo, same_colours

SIZES = [(1, 1), (17, 23), (1, 40), (40, 1), (2, 2), (48, 64), (63, 129)]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def segments(jpeg: bytes) -> dict[int, bytes]:
    """Return the body of each marker segment before the scan."""
    place, found = 2, {}
    while jpeg[place + 1] != 0xDA:
        length = int.from_bytes(jpeg[place + 2 : place + 4], "big")
        found[jpeg[place + 1]] = jpeg[place + 4 : place + 2 + length]
        place += 2 + length
    return found


@pytest.mark.parametrize(
    ("width", "interval"),
    [
        (1, 1),  # a row of 1 unit
        (64, 4),
        (65, 5),  # 5 units: 5 is the row
        (96, 6),  # 6 units: 4 and 5 do not divide, 6 is the row
        (128, 4),
        (160, 5),  # 10 units
        (176, 11),  # a prime
        (500, 4),  # 32 units
        (512, 4),
        (375, 4),  # 24 units
        (336, 7),  # 21 units
    ],
)
def test_the_restart_interval_divides_a_row(width: int, interval: int) -> None:
    assert restart_interval(width) == interval


@pytest.mark.parametrize("size", SIZES)
def test_a_jpeg_has_its_size_sampling_and_restart_markers(size: tuple[int, int]) -> None:
    jpeg = encode_jpeg(noise(*size), quality=90)
    found = segments(jpeg)
    assert int.from_bytes(found[0xDD], "big") == restart_interval(size[1])
    assert found[0xC0][5:] == bytes([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])  # SOF0, 4:2:0
    units = -(-size[0] // 16) * -(-size[1] // 16)
    expected = -(-units // restart_interval(size[1])) - 1
    scan = jpeg[jpeg.index(b"\xff\xda") :]
    assert sum(scan.count(bytes([0xFF, 0xD0 + number])) for number in range(8)) == expected
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == size[::-1]
        image.load()


def test_a_jpeg_has_the_pictures_colours_and_the_quality_asked_for() -> None:
    picture = photo(1, height=100, width=150)
    sizes = []
    for quality in (50, 90):
        jpeg = encode_jpeg(picture, quality=quality)
        sizes.append(len(jpeg))
        with Image.open(io.BytesIO(jpeg)) as image, io.BytesIO() as again:
            Image.fromarray(picture).save(again, "JPEG", quality=quality, subsampling=2)
            with Image.open(again) as pillows:
                assert image.quantization == pillows.quantization  # type: ignore[attr-defined]
                np.testing.assert_array_equal(np.asarray(image), np.asarray(pillows))
            assert same_colours(np.asarray(image), picture)
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("size", SIZES)
def test_raw_is_the_pixels(size: tuple[int, int]) -> None:
    picture = noise(*size)
    data = encode(picture, MODE_RAW, quality=90)
    assert len(data) == stored_bytes(MODE_RAW, *size)
    np.testing.assert_array_equal(np.frombuffer(data, np.uint8).reshape(picture.shape), picture)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [noise, lambda h, w: photo(7, height=h, width=w)])
def test_yuv420_planes_are_pillows_ycbcr_averaged(size: tuple[int, int], make: object) -> None:
    assert callable(make)
    picture = make(*size)
    data = np.frombuffer(encode_yuv420(picture), np.uint8)
    height, width = size
    half = (-(-height // 2), -(-width // 2))
    assert len(data) == stored_bytes(MODE_YUV420, height, width)
    luma = data[: height * width].reshape(size)
    chroma = data[height * width :].reshape(2, *half)
    full = np.asarray(Image.fromarray(picture).convert("YCbCr")).astype(float)
    # Pillow's tables round three products to 1/64 and the sum downwards: one level at most.
    assert np.abs(luma - full[..., 0]).max() <= 1
    for plane, channel in zip(chroma, (full[..., 1], full[..., 2]), strict=True):
        padded = np.pad(channel, ((0, height % 2), (0, width % 2)), mode="edge")
        means = padded.reshape(half[0], 2, half[1], 2).mean(axis=(1, 3))
        assert np.abs(plane - means).max() <= 1.5  # its own half level on top of Pillow's


def test_yuv420_of_extreme_and_grey_colours_is_exact() -> None:
    # JFIF 1.02 by hand, rounded: pure colours saturate at 255.
    colours = {
        (255, 0, 0): (76, 85, 255),
        (0, 255, 0): (150, 44, 21),
        (0, 0, 255): (29, 255, 107),
        (255, 255, 255): (255, 128, 128),
        (0, 0, 0): (0, 128, 128),
        (77, 77, 77): (77, 128, 128),
    }
    for rgb, planes in colours.items():
        flat = np.full((3, 5, 3), rgb, np.uint8)
        data = encode_yuv420(flat)
        assert (data[:15], data[15:21], data[21:]) == tuple(
            bytes([value]) * count for value, count in zip(planes, (15, 6, 6), strict=True)
        )


def test_chroma_is_centred_in_its_four_pixels() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[1, 1] = (0, 0, 255)  # a quarter of the first block
    cb = np.frombuffer(encode_yuv420(picture), np.uint8)[16:20].tolist()
    assert cb == [160, 128, 128, 128]  # 128 + 127.5 / 4


@pytest.mark.parametrize("text", ["jpg", "passthrough", "raw", "yuv420", "mix:0.25", "mix:0.5:raw"])
def test_a_store_has_a_name_that_reads_back(text: str) -> None:
    store = parse_store(text)
    assert parse_store(store.name) == store
    assert store.kind == text.split(":")[0]


@pytest.mark.parametrize(
    "text", ["", "png", "mix", "mix:0", "mix:1", "mix:nan", "mix:x", "mix:0.5:jpg", "jpg:3", "raw:"]
)
def test_what_is_no_store_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no store|between 0 and 1"):
        parse_store(text)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_mix_has_its_share_and_does_not_depend_on_the_call(share: float) -> None:
    store = parse_store(f"mix:{share}:yuv420")
    modes = [store.mode(position) for position in range(4000)]
    assert set(modes) == {MODE_JPG, MODE_YUV420}
    found = np.mean([mode == MODE_YUV420 for mode in modes])
    assert abs(found - share) <= 5 * np.sqrt(share * (1 - share) / 4000)  # five sigma
    assert [store.mode(position) for position in (3999, 17)] == [modes[3999], modes[17]]
    more = Store("mix", min(1.0, share + 0.05), MODE_YUV420)
    # A larger share only adds: the draws belong to the position.
    kept = [more.mode(position) for position, mode in enumerate(modes) if mode == MODE_YUV420]
    assert set(kept) == {MODE_YUV420}
