"""A file's own bytes are stored when the loader can read them and they are sound, and only then."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harl_fast.data.container.fields import MODE_JPG
from harl_fast.data.container.stores import parse_store
from preprocess.convert import ConversionSettings, Sample, Task, convert
from preprocess.masks import parse_spec
from preprocess.passthrough import NotTakenError, take_jpeg
from preprocess.sources import Rejected
from tests.data.jpegfuzz import crafted_jpeg
from tests.preprocess.support import photo, same_colours, save

PHOTO = photo(3, height=47, width=65)
GREY = PHOTO[..., 0]


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 92, **options})
    return stream.getvalue()


def colour(**options: object) -> bytes:
    return jpeg(Image.fromarray(PHOTO), **options)


def turned() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return colour(exif=tags)


def upright() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 1
    return colour(exif=tags)


def sampled(first: int) -> bytes:
    """Return a grey picture's JPEG that calls its luma ``first`` (0x41: 4:1:1) in three parts."""
    content = bytearray(colour(subsampling=0))
    content[content.index(b"\xff\xc0") + 11] = first
    return bytes(content)


def tall_chroma() -> bytes:
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440]
    content: bytes = cv2.imencode(".jpg", PHOTO[..., ::-1], flags)[1].tobytes()
    assert content[content.index(b"\xff\xc0") + 11] == 0x12
    return content


def extended() -> bytes:
    return colour().replace(b"\xff\xc0\x00\x11", b"\xff\xc1\x00\x11")


def rgb_by_adobe() -> bytes:
    """Return a JPEG without JFIF whose Adobe marker says that its components are RGB."""
    content = colour(subsampling=0)
    app0 = content.index(b"\xff\xe0")
    length = 2 + int.from_bytes(content[app0 + 2 : app0 + 4], "big")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    return content[:app0] + adobe + content[app0 + length :]


def rgb_by_name() -> bytes:
    content = bytearray(rgb_by_adobe().replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xe9\x00\x0eAdobe"))
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        start = content.index(marker) + first
        content[start : start + 3 * step : step] = b"RGB"
    return bytes(content)


def separate_scans() -> bytes:
    """Return a JPEG whose first scan holds its luma alone, by its header."""
    content = colour(subsampling=0)
    start = content.index(b"\xff\xda")
    return content[:start] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + content[start + 14 :]


def cut(content: bytes, share: float, *, end: bool = False) -> bytes:
    return content[: int(len(content) * share)] + (b"\xff\xd9" if end else b"")


TAKEN = {
    "4:2:0": colour(subsampling=2),
    "4:2:2": colour(subsampling=1),
    "4:4:4": colour(subsampling=0),
    "4:4:0": tall_chroma(),
    "grey": jpeg(Image.fromarray(GREY)),
    "upright by EXIF": upright(),
    "restart markers": colour(restart_marker_blocks=3),
    "optimized tables": colour(optimize=True),
    "extended sequential": extended(),
    "bytes after the end": colour() + b"trailing bytes",
}
REFUSED = {
    "progressive": (colour(progressive=True), "progressive"),
    "cmyk": (jpeg(Image.fromarray(np.dstack([PHOTO, GREY]), "CMYK")), "colours"),
    "RGB by Adobe's marker": (rgb_by_adobe(), "colours"),
    "RGB by name": (rgb_by_name(), "colours"),
    "turned": (turned(), "EXIF"),
    "4:1:1": (sampled(0x41), "sampling"),
    "one scan a component": (separate_scans(), "does not read"),
    "no JPEG": (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a JPEG"),
    "empty": (b"", "not a JPEG"),
    "cut in the header": (cut(colour(), 0.1), "header"),
    "cut short": (cut(colour(), 0.7), "libjpeg warns"),
    "cut short, with an end": (cut(colour(), 0.7, end=True), "libjpeg warns"),
    "without its last bytes": (colour()[:-2], "libjpeg warns"),
    "of many bytes": (colour() + bytes(3 * 512 * 512 + 65536), "more bytes than raw"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.jpg"


def converted(path: Path, *, max_resolution: int = 512, store: str = "passthrough") -> Sample:
    settings = ConversionSettings(max_resolution, 90, 64, parse_spec("full"), parse_store(store))
    (result,) = convert([Task("x", 0, path, None)], settings)
    assert isinstance(result, Sample)
    return result


@pytest.mark.parametrize("kind", TAKEN)
def test_a_plain_jpeg_is_stored_byte_for_byte(path: Path, kind: str) -> None:
    path.write_bytes(TAKEN[kind])
    sample = converted(path)
    assert sample.image.tobytes() == TAKEN[kind] and sample.reencoded == ""
    assert (sample.mode, sample.height, sample.width) == (MODE_JPG, *PHOTO.shape[:2])
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    # FFCV's decoder uses libjpeg's fast transform, Pillow the exact one: a level on average.
    assert same_colours(take_jpeg(path, side_px=512).rgb, expected, mean=2.0)
    assert take_jpeg(path, side_px=512, pixels=False).data == TAKEN[kind]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_loader_cannot_take_has_a_reason(path: Path, kind: str) -> None:
    content, reason = REFUSED[kind]
    path.write_bytes(content)
    for pixels in (True, False):
        with pytest.raises(NotTakenError, match=reason):
            take_jpeg(path, side_px=512, pixels=pixels)


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_treated_as_by_the_store_jpg(path: Path, kind: str) -> None:
    path.write_bytes(REFUSED[kind][0])
    settings = [
        ConversionSettings(512, 90, 64, parse_spec("full"), parse_store(name))
        for name in ("jpg", "passthrough")
    ]
    (plain,), (passed,) = (convert([Task("x", 0, path, None)], each) for each in settings)
    if isinstance(plain, Rejected):
        assert passed == plain
    else:
        assert isinstance(passed, Sample) and passed.image.tobytes() == plain.image.tobytes()
        assert passed.reencoded and passed._replace(reencoded="", image=plain.image) == plain


def test_a_progressive_file_keeps_its_colours(path: Path) -> None:
    path.write_bytes(REFUSED["progressive"][0])
    with Image.open(io.BytesIO(converted(path).image)) as image:
        assert "progressive" not in image.info
        assert same_colours(np.asarray(image), PHOTO)


def test_a_large_picture_is_shrunk_and_one_at_the_limit_is_not(path: Path) -> None:
    path.write_bytes(TAKEN["4:2:0"])
    assert converted(path, max_resolution=65).image.tobytes() == TAKEN["4:2:0"]
    smaller = converted(path, max_resolution=64)
    assert smaller.reencoded == "larger than max_resolution"
    assert (smaller.height, smaller.width) == (46, 64)


def test_pictures_in_memory_and_other_formats_are_encoded(tmp_path: Path) -> None:
    settings = ConversionSettings(512, 90, 64, parse_spec("full"), parse_store("passthrough"))
    tasks = [
        Task("array", 0, PHOTO, None),
        Task("png", 0, save(PHOTO, tmp_path / "x.png"), None),
    ]
    array, png = convert(tasks, settings)
    assert isinstance(array, Sample) and isinstance(png, Sample)
    assert array.image.tobytes() == png.image.tobytes() and (array.reencoded, png.reencoded) == (
        "no file",
        "not a JPEG",
    )


def test_a_picture_of_one_pixel_passes(path: Path) -> None:
    save(np.full((1, 1, 3), 90, np.uint8), path)
    assert converted(path).image.tobytes() == path.read_bytes()


def test_a_jpeg_that_two_readers_see_two_pictures_in_is_encoded_again(path: Path) -> None:
    """Pillow and libjpeg see 160 x 64000 px, who reads lengths after every marker 300 x 300."""
    path.write_bytes(crafted_jpeg())
    sample = converted(path)
    assert sample.reencoded == "no sound JPEG header"
    assert (sample.height, sample.width) == (512, 1) and sample.image.tobytes() != path.read_bytes()


def test_a_size_that_pillow_sees_otherwise_is_encoded_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(TAKEN["4:2:0"])
    monkeypatch.setattr("PIL.Image.Image.size", property(lambda image: (64, 47)))
    with pytest.raises(NotTakenError, match="another size to Pillow"):
        take_jpeg(path, side_px=512)
