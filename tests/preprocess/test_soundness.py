"""Damaged JPEG and WebP files are left out by name whatever the store, or kept on request."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.data.container.stores import parse_store
from preprocess import beton as converter
from preprocess.convert import ConversionSettings, Sample, Task, convert
from preprocess.images.decode import decode_image
from preprocess.images.reading import Reading, UnusableImageError
from preprocess.masks import parse_spec
from preprocess.sources import Rejected
from tests.betons import smooth_noise

PHOTO = smooth_noise(0, 240, 320)
KINDS = {
    "4:2:0": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "restart markers": {"restart_marker_blocks": 4},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "WebP": {"format": "WEBP"},
    "lossless WebP": {"format": "WEBP", "lossless": True},
}
STORES = ("jpg", "passthrough", "raw", "yuv420", "mix:0.5")


def picture(kind: str) -> bytes:
    options = {"format": "JPEG", "mode": "RGB", "quality": 90, **KINDS[kind]}
    stream = io.BytesIO()
    Image.fromarray(PHOTO).convert(options.pop("mode")).save(stream, **options)
    return stream.getvalue()


def zeroed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(512) + data[middle + 512 :]


def with_hole(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + data[middle + 512 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) * 7 // 10]


DAMAGE = {"zeroed": zeroed, "with a hole": with_hole, "cut short": cut}


def converted(path: Path, *, store: str = "jpg", keep_warned: bool = False) -> Sample | Rejected:
    settings = ConversionSettings(
        512, 90, 64, parse_spec("full"), parse_store(store), Reading(keep_warned=keep_warned)
    )
    (result,) = convert([Task("x", 0, path, None)], settings)
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.jpg"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_whatever_the_store(path: Path, kind: str, damage: str) -> None:
    path.write_bytes(picture(kind))
    for store in STORES:
        assert isinstance(converted(path, store=store), Sample), store
    path.write_bytes(DAMAGE[damage](picture(kind)))
    verdicts = {converted(path, store=store) for store in STORES}
    (verdict,) = verdicts  # the same for all
    assert isinstance(verdict, Rejected)
    if KINDS[kind].get("format") != "WEBP":
        assert "damaged: libjpeg warns: " in verdict.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side_px", [512, 150, 75, 38])
def test_a_sound_file_has_the_pixels_that_pillow_finds(path: Path, kind: str, side_px: int) -> None:
    """Drafted too: at a half, a quarter and an eighth of its size."""
    path.write_bytes(picture(kind))
    with Image.open(path) as image:
        image.draft(None, (side_px, side_px))
        if image.mode == "CMYK" and "adobe" not in image.info:
            pytest.skip("Pillow's own reading is inverted, see test_images")
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(path, side_px=side_px).rgb, expected)


def test_what_concerns_no_pixel_is_no_damage(path: Path) -> None:
    data = picture("4:2:0")
    for odd in (
        data + b"trailing bytes" * 100,
        data[:-2] + b"\xff\xff\xff\xd9",
        data[:-2] + b"\xff\xfe\x00\x06note\xff\xd9",
        data[:2] + b"\xff\xff\xff" + data[2:],
        data[:2] + b"\xff\xe7\x00\x06note" + data[2:],
        data + data,
    ):
        path.write_bytes(odd)
        assert np.array_equal(decode_image(path, side_px=512).rgb, _pillow(data))


def _pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_webp_without_loss_of_bytes_is_sound(path: Path) -> None:
    """Also with little to code, with transparency, or with a second frame."""
    flat = Image.new("RGB", (300, 200), (20, 130, 70))
    alpha = Image.fromarray(PHOTO).convert("RGBA")
    alpha.putalpha(Image.fromarray(PHOTO[..., 0]))
    half = Image.fromarray(np.where(np.arange(240)[:, None, None] < 40, PHOTO, 255).astype("u1"))
    for image in (flat, alpha, half):
        for options in ({}, {"lossless": True}, {"quality": 5}, {"quality": 100, "method": 6}):
            image.save(path, "WEBP", **options)
            assert decode_image(path, side_px=512).rgb.shape[:2] == image.size[::-1]
    flat.save(path, "WEBP", save_all=True, append_images=[half.resize(flat.size)])
    assert decode_image(path, side_px=512).rgb.shape == (200, 300, 3)


def test_a_file_in_which_pillow_finds_another_size_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(picture("4:2:0"))
    monkeypatch.setattr("PIL.Image.Image.size", property(lambda image: (320, 239)))
    with pytest.raises(UnusableImageError, match="other sizes"):
        decode_image(path, side_px=512)


@pytest.mark.parametrize("store", ["jpg", "passthrough"])
def test_damaged_files_are_kept_on_request(path: Path, store: str) -> None:
    path.write_bytes(zeroed(picture("4:2:0")))
    kept = converted(path, store=store, keep_warned=True)
    assert isinstance(kept, Sample) and (kept.height, kept.width) == PHOTO.shape[:2]
    assert kept.warning.startswith("damaged: libjpeg warns: Corrupt JPEG data")
    assert kept.reencoded == ("libjpeg warns: damaged or cut short" if store != "jpg" else "")
    path.write_bytes(picture("4:2:0"))
    sound = converted(path, store=store, keep_warned=True)
    assert isinstance(sound, Sample) and sound.warning == ""


def test_the_programs_say_what_became_of_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        for number in range(6):
            place = data / split / f"class{number % 2}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(zeroed(picture("4:2:0")) if number == 3 else picture("4:2:0"))
    for flags, count in (([], 5), (["--keep-warned"], 6)):
        out = tmp_path / f"out{count}"
        arguments = ["--data", str(data), "--out", str(out), "--mask-method", "full", *flags]
        assert converter.main([*arguments, "--workers", "1"]) == 0
        told = capsys.readouterr().out
        manifest = json.loads((out / "train.json").read_text())
        report = json.loads((out / "train.report.json").read_text())
        (item,) = report["warned" if flags else "skipped"]
        assert item["path"] == "train/class1/3.jpg" and "libjpeg warns" in item["reason"]
        assert manifest["count"] == count and manifest["store"].get("warned") == (
            1 if flags else None
        )
        assert ("1 of the skipped files are damaged; --keep-warned" in told) == (not flags)
        assert ("damaged files that were kept and reasons" in told) == bool(flags)


@pytest.mark.parametrize("lossless", [False, True])
def test_an_animation_is_judged_by_its_first_frame(path: Path, lossless: bool) -> None:
    first, second = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())
    first.save(path, "WEBP", save_all=True, append_images=[second], lossless=lossless)
    assert decode_image(path, side_px=512).rgb.shape == PHOTO.shape
    data = path.read_bytes()
    places = [at for at in range(len(data)) if data[at : at + 4] == b"ANMF"]
    assert len(places) == 2
    for frame, at in enumerate(places):
        middle = at + int.from_bytes(data[at + 4 : at + 8], "little") // 2
        path.write_bytes(data[:middle] + bytes(64) + data[middle + 64 :])
        if frame == 0:
            with pytest.raises(UnusableImageError, match=r"damaged|OSError"):
                decode_image(path, side_px=512)
        else:
            decode_image(path, side_px=512)


def with_zeros(data: bytes, *, table: int, first: int = 0) -> bytes:
    """Return a JPEG with zeros from step ``first`` of a quantization table on."""
    content, start = bytearray(data), -1
    for _ in range(table + 1):
        start = content.index(b"\xff\xdb\0\x43", start + 1)
    assert content[start + 4] == table
    content[start + 5 + first : start + 69] = bytes(64 - first)
    return bytes(content)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("table", "first"), [(0, 0), (1, 0), (0, 63)])
def test_a_quantization_table_with_zeros_is_damage(
    path: Path, table: int, first: int, store: str
) -> None:
    path.write_bytes(with_zeros(picture("4:2:0"), table=table, first=first))
    result = converted(path, store=store)
    assert isinstance(result, Rejected)
    assert result.reason == "damaged: a quantization table of the JPEG has zeros"
    assert isinstance(converted(path, store=store, keep_warned=True), Sample)


def test_a_quantization_table_that_no_colour_uses_may_hold_anything(path: Path) -> None:
    data = picture("grey")
    path.write_bytes(data[:2] + b"\xff\xdb\0\x43\3" + bytes(64) + data[2:])
    assert isinstance(converted(path), Sample)


def indexed_bmp(colours: bytes, index: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 8, 0, 4, 0, 0, len(colours) // 4, 0)
    start = 14 + len(head) + len(colours)
    file = struct.pack("<2sIHHI", b"BM", start + 4, 0, 0, start)
    return file + head + colours + bytes([0, index, 0, 0])


def indexed_gif(palette: bytes, index: int, *, hidden: int | None = None) -> bytes:
    flags = 0x80 | ((len(palette) // 3).bit_length() - 2)
    control = b"" if hidden is None else b"!\xf9\4\1\0\0" + bytes([hidden, 0])
    codes = 256 | index << 18 | 257 << 27  # 9 bits each: clear, 0, index, end
    data = bytes([8, 5]) + codes.to_bytes(5, "little") + b"\0;"
    screen = b"GIF89a" + struct.pack("<HHBBB", 2, 1, flags, 0, 0) + palette
    return screen + control + struct.pack("<cHHHHB", b",", 0, 0, 2, 1, 0) + data


def test_a_colour_beyond_the_palette_of_a_bmp_or_gif_is_damage(path: Path) -> None:
    for make, palette in (
        (indexed_bmp, b"\xff\0\0\0\0\xff\0\0"),  # blue and green
        (indexed_gif, b"\0\0\xff\0\xff\0"),
    ):
        path.write_bytes(make(palette, 1))
        assert decode_image(path, side_px=512).rgb.tolist() == [[[0, 0, 255], [0, 255, 0]]]
        path.write_bytes(make(palette, 2))
        with pytest.raises(UnusableImageError, match=r"colour 2 of the \w+'s palette.*ends at 1"):
            decode_image(path, side_px=512)
    path.write_bytes(indexed_gif(palette, 200, hidden=200))
    assert decode_image(path, side_px=512).rgb.tolist() == [[[0, 0, 255], [255, 255, 255]]]


def test_a_jpeg_that_libjpeg_refuses_outright_is_refused_for_its_reason(tmp_path: Path) -> None:
    content = bytearray(picture("4:2:0"))
    frame = content.index(b"\xff\xc0")
    content[frame + 11] = 0x77  # the first component's sampling factors end at 4
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(UnusableImageError, match=r"damaged: libjpeg warns: .*sampling factors"):
        decode_image(path, side_px=512)
