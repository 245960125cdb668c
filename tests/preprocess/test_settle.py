"""What black and white are in deep greys: found in tags or values, kept for the whole set, told."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, TiffImagePlugin

from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.reader import read_samples
from preprocess import beton
from preprocess.images import colours, settle
from preprocess.images.decode import decode_image
from preprocess.images.reading import FEW_LEVELS, GreyRange, Reading, parse_range
from preprocess.masks.__main__ import main as masks_main
from tests.preprocess.support import image_folder, photo, save
from tests.preprocess.test_colours import FLOAT, SIGNED, ramp, scaled, tiff

Values = npt.NDArray[np.generic]


def twelve_bits(index: int) -> Values:
    """Return a picture of 12 bits in 16."""
    return (photo(index)[..., 0].astype(np.uint16) << 4) | 8


def with_sbit(path: Path, values: Values, bits: int) -> Path:
    """Write a 16-bit grey PNG whose chunk sBIT says ``bits`` (PNG, third edition, 11.3.2.7)."""
    save(values, path)
    data = path.read_bytes()
    chunk = b"sBIT" + bytes([bits])
    whole = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:33] + whole + data[33:])
    return path


def with_tags(path: Path, values: Values, low: float, high: float, *, signed: bool) -> Path:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in zip((340, 341) if signed else (280, 281), (low, high), strict=True):
        tags[tag], tags.tagtype[tag] = value, 12 if signed else 3
    Image.fromarray(values).save(path, tiffinfo=tags)
    return path


def test_tags_state_a_range(tmp_path: Path) -> None:
    low = twelve_bits(1)
    cases = {
        "0:4095": with_sbit(tmp_path / "low.png", low, 12),
        "0:65535": with_sbit(tmp_path / "scaled.png", low << 4, 12),  # as PNG demands
        "10:3000": with_tags(tmp_path / "t.tif", low, 10, 3000, signed=False),
        "-1.5:2.5": with_tags(tmp_path / "f.tif", ramp(-1, 2, "f4"), -1.5, 2.5, signed=True),
    }
    for name, path in cases.items():
        found = settle.find_range([path])
        assert found.name == name and found.found == "auto: the tags of 1 images"
    packed = tiff(tmp_path / "p.tif", ramp(5, 3000, "u2"), bits=12)
    assert settle.find_range([packed]).name == "0:4095"
    several = [cases["0:4095"], cases["10:3000"], tmp_path / "none.png", photo(1)]
    both = settle.find_range(several)
    assert both.name == "0:4095" and "tags of 2 images" in both.found


@pytest.mark.parametrize(
    ("dtype", "kind"), [("u2", 1), ("i2", SIGNED), ("f4", FLOAT), ("i4", SIGNED)]
)
def test_values_tell_the_range_where_no_tags_do(tmp_path: Path, dtype: str, kind: int) -> None:
    rng = np.random.default_rng(0)
    middle = 0.25 if dtype == "f4" else 9000
    sets = [rng.normal(middle, middle / 9, (80, 90)).astype(dtype) for _ in range(3)]
    if dtype == "f4":
        sets[0][0, :3] = np.nan, np.inf, -np.inf
    bits = 8 * np.dtype(dtype).itemsize
    files = [tiff(tmp_path / f"{i}.tif", v, bits=bits, kind=kind) for i, v in enumerate(sets)]
    found = settle.find_range(files)
    ends = [np.percentile(v[np.isfinite(v)].astype(np.float64), (0.1, 99.9)) for v in sets]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    if dtype != "f4":
        low, high = np.floor(low), np.ceil(high)
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
    assert "values" in found.found
    assert parse_range(found.name) == GreyRange("fixed", found.low, found.high)
    got = decode_image(files[1], side_px=512, reading=Reading(found)).rgb[..., 0]
    assert np.abs(got - scaled(sets[1], found.low, found.high)).max() <= 0.5 + 1e-6


def test_a_value_for_no_data_is_told_and_left_out_where_the_file_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heights = ramp(200, 900, "f4")
    heights[:4] = -9999
    found = settle.find_range([tiff(tmp_path / "a.tif", heights, bits=32, kind=FLOAT)])
    assert found.low == -9999
    assert capsys.readouterr().out.startswith("note: in 1 of 1 images the value -9999 is further")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "-9999"
    named = tmp_path / "b.tif"
    Image.fromarray(heights).save(named, tiffinfo=tags)
    found = settle.find_range([named])
    assert found.low == pytest.approx(np.percentile(heights[4:], 0.1), rel=1e-4)
    assert not capsys.readouterr().out
    rgb = decode_image(named, side_px=512, reading=Reading(grey=parse_range("minmax"))).rgb
    assert not rgb[:4].any() and rgb[4:].min() == 0 and rgb.max() == 255


def test_sets_without_deep_greys_keep_the_full_range(tmp_path: Path) -> None:
    flat = save(np.full((8, 8), 700, np.uint16), tmp_path / "flat.png")
    for images in ([], [photo(1)], [save(photo(1), tmp_path / "x.png")], [flat]):
        assert settle.find_range(images) == GreyRange()
    fixed = Reading(parse_range("3:9"))
    assert settle.settle(fixed, 1, lambda _: flat) is fixed


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_percentiles_are_those_of_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, step: int
) -> None:
    values = np.random.default_rng(1).gamma(2.0, 900.0, (128, 90)).astype(dtype)
    monkeypatch.setattr(colours, "MOST_VALUES", values.size // step)
    path = tiff(
        tmp_path / "x.tif", values, bits=8 * values.itemsize, kind=3 if dtype == "f4" else 1
    )
    got = decode_image(path, side_px=512, reading=Reading(parse_range("percentile:2:97.5")))
    ends = np.percentile(values[::step].astype(np.float64), (2, 97.5))
    assert np.abs(got.rgb[..., 0] - scaled(values, *ends)).max() <= 0.5 + 1e-6


def test_an_image_that_loses_its_levels_is_remarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = twelve_bits(2)
    few = (photo(2)[..., 0] // 8).astype(np.uint16)
    cases = {"full": True, "minmax": False, "0:1e6": True, "auto": True}
    for strip_pixels in (colours.STRIP_PIXELS, 64):
        monkeypatch.setattr(colours, "STRIP_PIXELS", strip_pixels)
        for text, lost in cases.items():
            reading = Reading(parse_range(text))
            got = decode_image(save(deep, tmp_path / "x.png"), side_px=99, reading=reading)
            assert got.remarks == ((FEW_LEVELS,) if lost else ())
            assert (len(np.unique(got.rgb)) < 64) == lost
        # What has few levels and keeps them has lost none.
        kept = decode_image(save(few * 2000, tmp_path / "few.png"), side_px=99)
        assert kept.remarks == () and len(np.unique(kept.rgb)) == len(np.unique(few))
        assert decode_image(save(few, tmp_path / "few.png"), side_px=99).remarks == (FEW_LEVELS,)


def test_a_conversion_keeps_the_range_that_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = image_folder(tmp_path / "set"), tmp_path / "out"
    for number in range(4):
        save(twelve_bits(number), root / f"train/class{number % 2}/deep{number}.png")
    deep = np.stack([twelve_bits(number) for number in range(4)])
    ends = np.percentile(deep.reshape(4, -1), (0.1, 99.9), axis=1)
    name = f"{np.floor(ends[0].min()):g}:{np.ceil(ends[1].max()):g}"
    fixed = ["--data", str(root), "--mask-size", "16", "--workers", "1"]
    assert masks_main(["--data", str(root), "--out", str(tmp_path / "masks")]) == 0
    assert beton.main([*fixed, "--out", str(out), "--masks", str(tmp_path / "masks")]) == 0
    shown = capsys.readouterr().out
    assert f"black and white are {name}, auto: the values but for 0.1 % at each end of 4" in shown
    assert FEW_LEVELS not in shown and "the masks were made" not in shown
    manifest = read_manifest(out / "train.beton")
    assert manifest.store["range"] == read_manifest(out / "val.beton").store["range"] == name
    assert manifest.store["range_found"].startswith("auto: the values")
    place = (out / "train.names.txt").read_text().splitlines().index("train/class0/deep2.png")
    (stored,) = read_samples(out / "train.beton", [place])
    low, high = map(float, name.split(":"))
    assert np.abs(stored.image[..., 0] - scaled(deep[2], low, high)).mean() < 3  # JPEG's losses

    assert beton.main([*fixed, "--out", str(tmp_path / "full"), "--range", "full"]) == 0
    assert f"{FEW_LEVELS}: 4 files" in capsys.readouterr().out
    facts = read_manifest(tmp_path / "full" / "train.beton").store
    assert facts["remarks"] == {FEW_LEVELS: 4} and "range_found" not in facts


def test_greys_of_16_bits_with_alpha_follow_the_range_and_lie_on_white(tmp_path: Path) -> None:
    """PNG alone has them; Pillow keeps eight bits of each."""
    grey, alpha = twelve_bits(3), np.full((48, 64), 65535, np.uint16)
    alpha[:, :9], alpha[:, 9:20] = 0, 16384
    rows = np.stack([grey, alpha], axis=-1).astype(">u2").reshape(48, -1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 64, 48, 16, 4, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks.items()
        )
    )
    for text in ("0:4095", "full", "minmax"):
        got = decode_image(path, side_px=512, reading=Reading(parse_range(text))).rgb[..., 0]
        ends = {"0:4095": (0, 4095), "full": (0, 65535), "minmax": (grey.min(), grey.max())}[text]
        level = np.rint(scaled(grey, *ends))
        wanted = 255 - alpha / 65535 * (255 - level)
        assert np.abs(got - wanted).max() <= 0.5 + 1e-6
    alone = save(grey, tmp_path / "alone.png")
    assert settle.find_range([path]) == settle.find_range([alone]) != GreyRange()


@pytest.mark.parametrize(("dtype", "kind"), [("f4", FLOAT), ("u4", 1)])
def test_a_range_that_is_narrow_beside_its_values_leaves_out_no_more_of_them(
    tmp_path: Path, dtype: str, kind: int
) -> None:
    """Such as pressures in pascals, or counts since a start long ago."""
    rng = np.random.default_rng(3)
    least, spread = (101321.6, 4.8) if dtype == "f4" else (20_000_040, 510)
    values = (least + spread * rng.random((80, 90))).astype(dtype)
    path = tiff(tmp_path / "x.tif", values, bits=32, kind=kind)
    found = settle.find_range([path])
    for outside in (values < found.low, values > found.high):
        assert outside.mean() <= 0.0015
    assert found.high - found.low < 1.01 * spread
    assert parse_range(found.name) == GreyRange("fixed", found.low, found.high)


@pytest.mark.parametrize("text", ["1234000:1234999", "0.12345678:0.9", "0:65535", "-1e+30:1e-07"])
def test_a_range_is_recorded_in_all_its_digits(text: str) -> None:
    found = parse_range(text)
    assert parse_range(found.name) == found
