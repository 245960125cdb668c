"""Every kind of image file gives the right RGB pixels, or a reason why it gives none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields.rgb_image import resizer
from PIL import Image

from preprocess.images.arrays import Pixels
from preprocess.images.decode import (
    PIXEL_LIMIT,
    Frame,
    decode_image,
    read_mask,
    shrink,
    stored_size,
)
from preprocess.images.reading import UnusableImageError
from tests.preprocess.support import photo, same_colours, save

PHOTO = photo(3)
GREY = PHOTO[..., 0]

# What turns an upright picture into the rows a file stores under each EXIF orientation
# (EXIF 2.32, tag 0x0112: where the stored 0th row and column lie on the upright picture).
STORED_ROWS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda u: u,  # row 0 is the top, column 0 the left side
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda u: u[::-1].swapaxes(0, 1),  # left, bottom
}


def decoded(path: Path, *, side_px: int = 512) -> Pixels:
    return decode_image(path, side_px=side_px).rgb


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_rgb_files_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(PHOTO, tmp_path / f"x.{suffix}", **options)
    np.testing.assert_array_equal(decoded(path), PHOTO)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = save(PHOTO, tmp_path / "x.png").rename(tmp_path / "x.jpg")
    np.testing.assert_array_equal(decoded(path), PHOTO)


def test_a_jpeg_gives_its_pixels_but_for_its_losses(tmp_path: Path) -> None:
    assert same_colours(decoded(save(PHOTO, tmp_path / "x.JPEG", quality=95)), PHOTO)


def test_grey_and_bilevel_files_give_equal_channels(tmp_path: Path) -> None:
    grey = decoded(save(GREY, tmp_path / "grey.png"))
    np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, axis=2))
    bilevel = decoded(save(GREY > 128, tmp_path / "bilevel.png"))
    np.testing.assert_array_equal(bilevel[..., 1], np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 48 * 64).reshape(48, 64).round().astype(np.uint16)
    got = decoded(save(deep, tmp_path / f"deep.{suffix}"))
    np.testing.assert_array_equal(got[..., 2], np.rint(deep / 257))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([PHOTO, np.full(GREY.shape, 255, np.uint8)])
    rgba[:10] = [200, 0, 0, 0]
    rgba[10:20] = [255, 0, 0, 128]
    got = decoded(save(rgba, tmp_path / "x.png"))
    assert (got[:10] == 255).all()
    half = 255 * (1 - 128 / 255)
    assert np.abs(got[10:20].astype(float) - [255, half, half]).max() <= 1  # rounding
    np.testing.assert_array_equal(got[20:], PHOTO[20:])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_files_give_their_colours(tmp_path: Path, transparent: bool) -> None:
    image = Image.fromarray(np.arange(4, dtype=np.uint8).repeat(64).reshape(16, 16), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "x.png", **({"transparency": 1} if transparent else {}))
    got = decoded(tmp_path / "x.png")
    middle = [255, 255, 255] if transparent else [0, 255, 0]
    assert got[::4, 0].tolist() == [[255, 0, 0], middle, [0, 0, 255], [9, 9, 9]]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (decoded(tmp_path / "x.gif") == [255, 0, 0]).all()


def cmyk_and_rgb() -> tuple[Image.Image, Pixels]:
    ink = np.dstack([PHOTO, GREY // 3])
    paper = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:]) / 255
    return Image.fromarray(ink, "CMYK"), np.rint(paper).astype(np.uint8)


def cmyk_jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=98, subsampling=0)
    return stream.getvalue()


def test_cmyk_jpegs_are_inverted_exactly_if_they_are_adobes(tmp_path: Path) -> None:
    image, expected = cmyk_and_rgb()
    adobe = cmyk_jpeg(image)  # Pillow writes inverted inks and Adobe's APP14 marker
    (tmp_path / "adobe.jpg").write_bytes(adobe)
    assert same_colours(decoded(tmp_path / "adobe.jpg"), expected)
    upright = cmyk_jpeg(Image.eval(image, lambda v: 255 - v))
    start = upright.index(b"\xff\xee")
    length = 2 + int.from_bytes(upright[start + 2 : start + 4], "big")
    (tmp_path / "plain.jpg").write_bytes(upright[:start] + upright[start + length :])
    assert same_colours(decoded(tmp_path / "plain.jpg"), expected)


def test_a_ycck_jpeg_gives_its_colours(tmp_path: Path) -> None:
    image, expected = cmyk_and_rgb()
    cyan, magenta, yellow, black = image.split()
    # Stored: the YCbCr of (C, M, Y), and K inverted. Pillow inverts all four as it saves.
    luma = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    stored = [Image.eval(channel, lambda v: 255 - v) for channel in luma]
    content = bytearray(cmyk_jpeg(Image.merge("CMYK", (*stored, black))))
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2  # APP14: the data are YCCK
    (tmp_path / "x.jpg").write_bytes(content)
    assert same_colours(decoded(tmp_path / "x.jpg"), expected)


@pytest.mark.parametrize("orientation", STORED_ROWS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_exif_orientation_is_turned_upright(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    rows = STORED_ROWS[orientation](PHOTO)
    path = save(np.ascontiguousarray(rows), tmp_path / f"x.{suffix}", exif=exif(orientation))
    got = decode_image(path, side_px=512)
    np.testing.assert_array_equal(got.rgb, PHOTO)
    assert got.frame.file_size == rows.shape[1::-1]
    assert got.frame.orientation == orientation


@pytest.mark.parametrize("orientation", STORED_ROWS)
def test_a_mask_of_the_stored_frame_turns_with_its_image(tmp_path: Path, orientation: int) -> None:
    mask = GREY > 120
    rows = np.ascontiguousarray(STORED_ROWS[orientation](mask))
    size = (rows.shape[1], rows.shape[0])
    path = save(rows.astype(np.uint8), tmp_path / "mask.png")  # any non-zero level is foreground
    np.testing.assert_array_equal(read_mask(path, Frame(orientation, size)), mask)


def test_a_mask_that_is_upright_already_stays(tmp_path: Path) -> None:
    mask = GREY > 120
    path = save(mask, tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(path, Frame(6, (48, 64))), mask)


def test_masks_that_do_not_fit_or_mean_nothing_are_refused(tmp_path: Path) -> None:
    square = save(np.ones((64, 64), np.uint8), tmp_path / "square.png")
    with pytest.raises(UnusableImageError, match="64 x 64 pixels, its image 64 x 48"):
        read_mask(square, Frame(1, (64, 48)))
    rgba = save(np.ones((48, 64, 4), np.uint8), tmp_path / "rgba.png")
    with pytest.raises(UnusableImageError, match="mode RGBA"):
        read_mask(rgba, Frame(1, (64, 48)))
    with pytest.raises(UnusableImageError, match=r"^FileNotFoundError: \[Errno 2\] [^:]*: [^:]*$"):
        read_mask(tmp_path / "none.png", Frame(1, (64, 48)))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_mask_with_an_orientation_of_its_own_is_refused(tmp_path: Path, suffix: str) -> None:
    mask = np.zeros((48, 64), np.uint8)
    path = tmp_path / f"mask.{suffix}"
    for orientation in (1, 6):
        save(mask, path, exif=exif(orientation), **({"lossless": True} if suffix == "webp" else {}))
        if orientation == 1:
            assert not read_mask(path, Frame(6, (64, 48))).any()
            continue
        with pytest.raises(UnusableImageError, match="a mask with EXIF orientation 6: save"):
            read_mask(path, Frame(6, (64, 48)))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_a_damaged_mask_is_refused_as_a_damaged_image_is(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    path = save(noise, tmp_path / f"mask.{suffix}")
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])
    with pytest.raises(UnusableImageError, match="damaged: "):
        read_mask(path, Frame(1, (64, 48)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.jpg", {}),
        ("x.webp", {"quality": 90}),
        ("x.webp", {"quality": 90, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),  # VP8X first
        ("x.tif", {"compression": "jpeg"}),
    ],
    ids=["jpeg", "webp", "extended webp", "jpeg in a tiff"],
)
def test_what_is_coded_with_loss_is_no_mask(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """Its coding would make foreground of the background around each object."""
    mask = Image.fromarray(np.where(GREY > 120, np.uint8(255), np.uint8(0)))
    mask.save(tmp_path / name, **options)
    (tmp_path / name).rename(tmp_path / "mask.png")
    with pytest.raises(UnusableImageError, match=r"coded with loss, whose background .* as PNG"):
        read_mask(tmp_path / "mask.png", Frame(1, (64, 48)))


def test_a_webp_without_loss_is_a_mask(tmp_path: Path) -> None:
    mask = GREY > 120
    Image.fromarray(np.uint8(255) * mask).save(tmp_path / "mask.webp", lossless=True)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.webp", Frame(1, (64, 48))), mask)


def test_a_mask_with_a_palette_counts_by_index_and_needs_its_colours(tmp_path: Path) -> None:
    mask = GREY > 120
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", Frame(1, (64, 48))), mask)
    image.putpalette([255, 0, 0])
    image.save(tmp_path / "mask.png", bits=8)
    with pytest.raises(UnusableImageError, match="colour 1 of the PNG's palette"):
        read_mask(tmp_path / "mask.png", Frame(1, (64, 48)))


def test_a_large_jpeg_is_decoded_reduced_and_keeps_its_look(tmp_path: Path) -> None:
    large = photo(5, height=1024, width=1536)
    path = save(large, tmp_path / "x.jpg", quality=95)
    got = decoded(path, side_px=128)
    assert got.shape == (128, 192, 3)
    small, full = (shrink(pixels, side_px=128) for pixels in (got, large))
    assert same_colours(small, full)


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def bad_files() -> dict[str, bytes]:
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(PHOTO).save(jpeg, "JPEG")
    Image.fromarray(PHOTO).save(png, "PNG")
    return {
        "empty": b"",
        "text": b"<html>not found</html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "half a jpeg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "a jpeg's first bytes": jpeg.getvalue()[:40],
        "half a png": png.getvalue()[: len(png.getvalue()) // 2],
        "a bomb": png_that_claims(60_000, 60_000),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_a_bad_file_has_a_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(bad_files()[kind])
    with pytest.raises(UnusableImageError) as caught:
        decoded(path)
    assert str(caught.value)
    if kind == "a bomb":
        assert f"{PIXEL_LIMIT:,}" in str(caught.value)


def test_only_image_decoders_are_used_whatever_pillow_could_open(tmp_path: Path) -> None:
    path = save(PHOTO, tmp_path / "x.ppm").rename(tmp_path / "x.jpg")
    with pytest.raises(UnusableImageError, match="cannot identify"):
        decoded(path)


def test_a_broken_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    path = save(PHOTO, tmp_path / "x.jpg", quality=95, exif=b"Exif\0\0garbage")
    assert same_colours(decoded(path), PHOTO)


@pytest.mark.parametrize(
    "shape", [(300, 500), (500, 300), (512, 512), (513, 100), (64, 48), (999, 1000), (3, 700)]
)
def test_the_stored_size_is_ffcvs(shape: tuple[int, int]) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    ours = shrink(pixels, side_px=512)
    assert ours.shape == resizer(pixels, 512).shape
    assert ours.shape[:2] == stored_size(*shape, side_px=512)


def test_thin_and_long_images_follow_their_rules(tmp_path: Path) -> None:
    line = np.full((1, 5000, 3), 7, np.uint8)
    assert shrink(line, side_px=512).shape == (1, 512, 3)
    assert decoded(save(np.full((1, 1, 3), 9, np.uint8), tmp_path / "dot.png")).shape == (1, 1, 3)
    with pytest.raises(UnusableImageError, match="65500"):
        shrink(np.zeros((2, 66_000, 3), np.uint8), side_px=70_000)


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bmp_whose_alpha_is_nowhere_set_is_opaque(tmp_path: Path, alpha: int) -> None:
    """Programs that know no alpha leave the fourth byte at zero."""
    pixels = photo(4, height=600, width=2000)  # more than one strip
    image = Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], alpha, np.uint8)]))
    path = tmp_path / "x.bmp"
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    # BITMAPV4HEADER with BI_BITFIELDS, rows from the top
    head = struct.pack("<IiiHHIIiiII", 108, 2000, -600, 1, 32, 3, 0, 0, 0, 0, 0) + masks
    head = head.ljust(108, b"\0")
    data = np.asarray(image)[..., [2, 1, 0, 3]].tobytes()
    start = 14 + len(head)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + data)
    np.testing.assert_array_equal(decode_image(path, side_px=4000).rgb, pixels)
    values = np.asarray(image).copy()
    values[7, 7, 3], values[8, 8, 3] = 255 - alpha, alpha
    path.write_bytes(path.read_bytes()[:start] + values[..., [2, 1, 0, 3]].tobytes())
    white = np.asarray(image)[..., 3] != values[..., 3] if alpha else values[..., 3] == 0
    expected = np.where(white[..., None], np.uint8(255), pixels)
    np.testing.assert_array_equal(decode_image(path, side_px=4000).rgb, expected)
