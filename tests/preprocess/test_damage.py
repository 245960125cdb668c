"""Damaged image files are refused with a reason wherever their format can tell."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.images.arrays import Pixels
from preprocess.images.decode import decode_image
from preprocess.images.reading import NO_EXIF, UnusableImageError
from tests.preprocess.support import photo

PLACES = 20
HOLE = 4096
NOISE = np.random.default_rng(0).integers(0, 60, (300, 400, 3), dtype=np.uint8)
PICTURE = photo(3, height=300, width=400) // 2 + NOISE

FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff, raw": ("TIFF", {}),
    "tiff, lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff, deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", {}),
    "webp, lossless": ("WEBP", {"lossless": True}),
}


def file_of(kind: str) -> bytes:
    name, options = FORMATS[kind]
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, name, **options)
    return stream.getvalue()


def damaged(content: bytes, how: str) -> list[bytes]:
    """Return copies damaged at random places behind the header, each at one."""
    draw = random.Random(how)
    places = [draw.randrange(100, len(content) - HOLE) for _ in range(PLACES)]
    if how == "a byte flipped":
        return [content[:p] + bytes([content[p] ^ 0x55]) + content[p + 1 :] for p in places]
    hole = bytes(HOLE) if how == "4 KiB zeroed" else b""
    return [content[:p] + hole + content[p + HOLE :] for p in places]


def decode(content: bytes, path: Path) -> Pixels:
    path.write_bytes(content)
    return decode_image(path, side_px=512).rgb


def silently_wrong(kind: str, how: str, path: Path) -> int:
    """Return how many of the damaged files give wrong pixels without an error."""
    content, wrong = file_of(kind), 0
    sound = decode(content, path)
    for copy in damaged(content, how):
        try:
            got = decode(copy, path)
        except UnusableImageError as error:
            assert str(error)
        else:
            wrong += not np.array_equal(got, sound)
    return wrong


HOWS = ["a byte flipped", "4 KiB zeroed", "4 KiB cut out"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["png", "tiff, deflate"])
def test_formats_with_checksums_never_give_wrong_pixels(
    tmp_path: Path, kind: str, how: str
) -> None:
    assert silently_wrong(kind, how, tmp_path / "x") == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_no_format_hides_that_a_piece_is_missing(tmp_path: Path, kind: str) -> None:
    assert silently_wrong(kind, "4 KiB cut out", tmp_path / "x") == 0


@pytest.mark.parametrize("kind", ["gif", "tiff, lzw"])
def test_code_that_cannot_be_is_noticed(tmp_path: Path, kind: str) -> None:
    assert silently_wrong(kind, "4 KiB zeroed", tmp_path / "x") == 0


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_broken_exif_block_means_upright_and_is_remarked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(PICTURE).save(path, exif=b"Exif\0\0garbage, none of TIFF's", lossless=True)
    got = decode_image(path, side_px=512)
    np.testing.assert_array_equal(got.rgb, PICTURE)
    assert got.frame.orientation == 1 and got.remarks == (NO_EXIF,)
