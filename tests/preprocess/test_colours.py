"""Greys of every depth, and pixels with a colour profile, become the right sRGB."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from preprocess.images import colours
from preprocess.images.arrays import Pixels
from preprocess.images.decode import Frame, decode_image, read_mask
from preprocess.images.reading import (
    CONVERTED,
    UNUSABLE,
    GreyRange,
    Reading,
    UnusableImageError,
    parse_range,
)
from tests.preprocess.support import photo, save

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
HEIGHT, WIDTH = 24, 32


def tiff(
    path: Path,
    values: npt.NDArray[np.generic],
    *,
    bits: int,
    kind: int = UNSIGNED,
    white_is_zero: bool = False,
    order: str = "<",
) -> Path:
    """Write an uncompressed grey TIFF of one strip (TIFF 6.0, section 2)."""
    if bits == 12:
        each = values.astype(np.uint32).ravel()
        pairs = each[::2] << 12 | each[1::2]
        data = b"".join(int(pair).to_bytes(3, "big") for pair in pairs)
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, values.shape[1]),
        (257, values.shape[0]),
        (258, bits),
        (259, 1),
        (262, 0 if white_is_zero else 1),
        (273, 8),
        (277, 1),
        (278, values.shape[0]),
        (279, len(data)),
        (339, kind),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


def ramp(low: float, high: float, dtype: str) -> npt.NDArray[np.generic]:
    return np.linspace(low, high, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(dtype)


def scaled(values: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.float64]:
    """Return the levels that a range means, in exact arithmetic."""
    return ((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255)


def grey(path: Path, grey_range: str = "full") -> Pixels:
    rgb = decode_image(path, side_px=512, reading=Reading(parse_range(grey_range))).rgb
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


DEPTHS = {
    "12 bits": (12, UNSIGNED, "u2", 0, 4095),
    "16 bits": (16, UNSIGNED, "u2", 0, 65535),
    "16 bits, signed": (16, SIGNED, "i2", -32768, 32767),
    "32 bits": (32, UNSIGNED, "u4", 0, 2**32 - 1),
    "32 bits, signed": (32, SIGNED, "i4", -(2**31), 2**31 - 1),
    "8 bits, signed": (8, SIGNED, "i1", -128, 127),
}


@pytest.mark.parametrize("strip_pixels", [colours.STRIP_PIXELS, 5 * WIDTH])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_deep_tiff_spans_black_to_white(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: str, strip_pixels: int
) -> None:
    monkeypatch.setattr(colours, "STRIP_PIXELS", strip_pixels)
    bits, kind, dtype, low, high = DEPTHS[depth]
    values = ramp(low, high, dtype)
    got = grey(tiff(tmp_path / "x.tif", values, bits=bits, kind=kind))
    assert np.abs(got - scaled(values, low, high)).max() <= 0.5 + 1e-6  # rounded once


@pytest.mark.parametrize(("order", "white_is_zero"), [("<", True), (">", False), ("<", False)])
def test_white_is_zero_and_both_byte_orders_are_followed(
    tmp_path: Path, order: str, white_is_zero: bool
) -> None:
    values = ramp(0, 65535, "u2")
    path = tmp_path / "x.tif"
    got = grey(tiff(path, values, bits=16, white_is_zero=white_is_zero, order=order))
    levels = np.rint(values / 257)
    np.testing.assert_array_equal(got, 255 - levels if white_is_zero else levels)


@pytest.mark.parametrize("bits", [12, 16])
def test_what_pillow_does_not_read_is_refused_by_name(tmp_path: Path, bits: int) -> None:
    path = tiff(tmp_path / "x.tif", ramp(0, 4095, "u2"), bits=bits, white_is_zero=True, order=">")
    with pytest.raises(UnusableImageError, match=f"TIFF of {bits} bits.*photometric 0.*save it as"):
        grey(path)


def test_a_range_says_what_is_black_and_white(tmp_path: Path) -> None:
    values = ramp(1000, 5000, "u2")
    for path in (save(values, tmp_path / "x.png"), tiff(tmp_path / "x.tif", values, bits=16)):
        np.testing.assert_array_equal(grey(path), np.rint(values / 257))
        for text, low, high in (("minmax", 1000, 5000), ("2000:3000", 2000, 3000)):
            assert np.abs(grey(path, text) - scaled(values, low, high)).max() <= 0.5 + 1e-6
    even = save(np.full((4, 4), 77, np.uint16), tmp_path / "even.png")
    assert (grey(even, "minmax") == 0).all()
    shallow = save(ramp(10, 20, "u1"), tmp_path / "shallow.png")
    assert grey(shallow, "minmax").max() == 20  # 8 bits are levels already


def test_floating_point_needs_a_range(tmp_path: Path) -> None:
    values = ramp(-1, 3, "f4")
    values[0, :2] = np.nan, np.inf
    path = tiff(tmp_path / "x.tif", values, bits=32, kind=FLOAT)
    with pytest.raises(UnusableImageError, match="--range minmax"):
        grey(path)
    got = grey(path, "0:1")
    assert got[0, :2].tolist() == [0, 255]
    assert np.abs(got[1:] - scaled(values[1:], 0, 1)).max() <= 0.5 + 1e-6
    assert grey(path, "minmax").max() == 255


@pytest.mark.parametrize("text", ["0:1", "minmax", "percentile:1:99"])
def test_an_image_without_a_finite_value_is_none(tmp_path: Path, text: str) -> None:
    """It would be a black one."""
    values = np.full((4, 200), np.nan, np.float32)
    with pytest.raises(UnusableImageError, match="no pixel has a finite value"):
        grey(tiff(tmp_path / "x.tif", values, bits=32, kind=FLOAT), text)


def test_a_transparent_16_bit_grey_lies_on_white(tmp_path: Path) -> None:
    values = ramp(0, 65535, "u2")
    values[:3] = 500
    Image.fromarray(values).save(tmp_path / "x.png", transparency=500)
    got = grey(tmp_path / "x.png")
    assert (got[:3] == 255).all()
    np.testing.assert_array_equal(got[3:], np.rint(values[3:] / 257))


OTHER = ["", "fulll", "1", "3:3", "5:1", "nan:1", "0:inf", "a:b", "1:2:3", "autos"]
OTHER += ["percentile", "percentile:", "percentile:5:101", "percentile:9:1", "percentile:-1:5"]


@pytest.mark.parametrize("text", OTHER)
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"LOW"):
        parse_range(text)


def test_a_ranges_name_gives_it_back() -> None:
    for text in ("auto", "full", "minmax", "0:4095", "-0.5:1e+06", "percentile:0.5:99.5"):
        assert parse_range(text).name == text
    assert parse_range("full") == GreyRange()


def test_a_deep_tiff_is_no_mask(tmp_path: Path) -> None:
    path = tiff(tmp_path / "m.png", ramp(0, 1, "u2"), bits=16, white_is_zero=True)
    with pytest.raises(UnusableImageError, match="save 8-bit grey"):
        read_mask(path, Frame(1, (WIDTH, HEIGHT)))


# Display P3: its primaries as XYZ at D50 (ICC registry, "Display P3"), with sRGB's curve.
P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


GAMMA = 1.8
"""Of the grey profiles."""


def linear(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    unit = levels / 255
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


def encoded(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def profile_of(colourants: npt.NDArray[np.float64], *, space: bytes = b"RGB ") -> bytes:
    """Return an ICC profile of three primaries, or of grey, with sRGB's curve (ICC.1:2022)."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    def xyz(*numbers: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*numbers)

    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0)
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    text = "test".encode("utf-16-be")
    words = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    white = xyz(0.9642, 1.0, 0.8249)
    tags = {b"desc": words, b"cprt": words, b"wtpt": white}
    if space == b"GRAY":
        tags[b"kTRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    else:
        for name, column in zip(b"rgb", colourants.T, strict=True):
            tags[bytes([name]) + b"XYZ"] = xyz(*column)
            tags[bytes([name]) + b"TRC"] = curve
    start = 128 + 4 + 12 * len(tags)
    places = itertools.accumulate(
        (len(data) + -len(data) % 4 for data in tags.values()), initial=start
    )
    table = b"".join(
        struct.pack(">4sII", name, place, len(data))
        for (name, data), place in zip(tags.items(), places, strict=False)
    )
    body = b"".join(data + bytes(-len(data) % 4) for data in tags.values())
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), bytes(4), 0x04300000, b"mntr", space, b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


WIDE, PLAIN = profile_of(P3), profile_of(SRGB)
PHOTO = photo(3)


def test_a_wide_gamut_is_converted_to_srgb_and_remarked(tmp_path: Path) -> None:
    path = save(PHOTO, tmp_path / "x.png", icc_profile=WIDE)
    light = linear(PHOTO.astype(np.float64)) @ P3.T @ np.linalg.inv(SRGB).T
    got = decode_image(path, side_px=512)
    assert np.abs(got.rgb - encoded(light)).max() <= 2  # LittleCMS's 8-bit tables
    assert np.abs(got.rgb.astype(int) - PHOTO).max() > 10
    assert got.remarks == (CONVERTED,)
    ignored = decode_image(path, side_px=512, reading=Reading(icc=False))
    np.testing.assert_array_equal(ignored.rgb, PHOTO)
    assert ignored.remarks == ()


@pytest.mark.parametrize("built_in", [False, True])
def test_pixels_in_srgb_stay_as_they_are(tmp_path: Path, built_in: bool) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(PHOTO, tmp_path / "x.png", icc_profile=own if built_in else PLAIN)
    got = decode_image(path, side_px=512)
    np.testing.assert_array_equal(got.rgb, PHOTO)
    assert got.remarks == ()


@pytest.mark.parametrize("profile", [b"none of ICC's", WIDE[:200], profile_of(P3, space=b"GRAY")])
def test_an_unusable_profile_is_remarked_and_ignored(tmp_path: Path, profile: bytes) -> None:
    got = decode_image(save(PHOTO, tmp_path / "x.png", icc_profile=profile), side_px=512)
    np.testing.assert_array_equal(got.rgb, PHOTO)
    assert got.remarks == (UNUSABLE,)


@pytest.mark.parametrize("late", [False, True])
def test_a_jpegs_profile_in_parts_of_which_one_is_missing_is_remarked(
    tmp_path: Path, late: bool
) -> None:
    """Pillow drops such a profile without a word, and one that stands after the frame's header."""
    path = save(PHOTO, tmp_path / "x.jpg", quality=95)
    data = path.read_bytes()
    part = b"ICC_PROFILE\0" + bytes([1, 1 if late else 2]) + WIDE
    segment = b"\xff\xe2" + (len(part) + 2).to_bytes(2, "big") + part
    at = data.index(b"\xff\xda") if late else 2
    plain = decode_image(path, side_px=512)
    path.write_bytes(data[:at] + segment + data[at:])
    got = decode_image(path, side_px=512)
    assert got.remarks == (UNUSABLE,) and plain.remarks == ()
    np.testing.assert_array_equal(got.rgb, plain.rgb)
    assert decode_image(path, side_px=512, reading=Reading(icc=False)).remarks == ()


def test_grey_profiles_and_strips_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(PHOTO[..., 0], tmp_path / "x.png", icc_profile=profile_of(P3, space=b"GRAY"))
    whole = decode_image(path, side_px=512)
    expected = encoded((PHOTO[..., 0] / 255) ** GAMMA)
    assert np.abs(whole.rgb - expected[..., None]).max() <= 2
    monkeypatch.setattr(colours, "STRIP_PIXELS", 1)
    strips = decode_image(path, side_px=512)
    np.testing.assert_array_equal(strips.rgb, whole.rgb)
    assert whole.remarks == strips.remarks == (CONVERTED,)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "L"])
def test_strips_give_the_pixels_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    image = Image.fromarray(PHOTO).convert("L" if mode == "LA" else mode.removesuffix("A"))
    if mode.endswith("A"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(PHOTO[..., 1]))
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path, **({"transparency": 3} if mode == "P" else {}))
    whole = decode_image(path, side_px=512).rgb
    monkeypatch.setattr(colours, "STRIP_PIXELS", 7 * PHOTO.shape[1])
    np.testing.assert_array_equal(decode_image(path, side_px=512).rgb, whole)


def test_a_jpeg_with_a_wide_gamut_does_not_pass_through(tmp_path: Path) -> None:
    from preprocess.passthrough import NotTakenError, take_jpeg

    wide = save(PHOTO, tmp_path / "wide.jpg", icc_profile=WIDE)
    with pytest.raises(NotTakenError, match="a colour profile other than sRGB"):
        take_jpeg(wide, side_px=512)
    assert take_jpeg(wide, side_px=512, reading=Reading(icc=False)).data == wide.read_bytes()
    take_jpeg(save(PHOTO, tmp_path / "plain.jpg", icc_profile=PLAIN), side_px=512)
