"""TIFFs of rarer kinds have the pixels that they mean, or are refused with a remedy."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from preprocess.images.decode import Frame, decode_image, read_mask
from preprocess.images.reading import UnusableImageError
from tests.preprocess.test_tiff import (
    DEFLATE,
    LENGTHS,
    PACKBITS,
    PHOTO,
    RAW,
    ROWS,
    STRIPS,
    TILE_LENGTHS,
    TILES,
    Tags,
    compressed,
    cut_up,
    decode,
    picture,
    tiff,
)

FILL_ORDER, EXTRA_SAMPLES = 266, 338
LOWEST_BIT_FIRST = {FILL_ORDER: [2]}


def turned(data: bytes) -> bytes:
    """Return bytes with the bits of each in reverse."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    return np.packbits(bits.reshape(-1, 8)[:, ::-1]).tobytes()


def one_strip(
    data: bytes, size: tuple[int, int], bits: list[int], photometric: int, compression: int = RAW
) -> Tags:
    """Return the tags of a TIFF of (height, width) whose data are one strip."""
    height, width = size
    tags = {256: [width], 257: [height], 258: bits, 259: [compression], 262: [photometric]}
    return tags | {277: [len(bits)], ROWS: [height], STRIPS: [8], LENGTHS: [len(data)]}


@pytest.mark.parametrize("compression", [RAW, DEFLATE])
@pytest.mark.parametrize("channels", [1, 3])
def test_premultiplied_colours_lie_on_white(
    tmp_path: Path, channels: int, compression: int
) -> None:
    level, alpha = np.indices((256, 256))
    straight = np.minimum(255 * level // np.maximum(alpha, 1), 255)
    on_white = np.rint((straight * alpha + 255 * (255 - alpha)) / 255)
    pixels = np.dstack([level] * channels + [alpha]).astype(np.uint8).tobytes()
    data = zlib.compress(pixels) if compression == DEFLATE else pixels
    photometric = 1 if channels == 1 else 2
    tags = one_strip(data, (256, 256), [8] * (channels + 1), photometric, compression)
    got = decode(tiff(tags | {EXTRA_SAMPLES: [1]}, data), tmp_path / "x.tif")
    np.testing.assert_array_equal(got, np.dstack([on_white] * 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [RAW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_bytes_may_have_their_lowest_bit_first(
    tmp_path: Path, layout: str, compression: int, order: str
) -> None:
    tags, data = picture(layout, compression)
    content = tiff(tags | LOWEST_BIT_FIRST, turned(data), order=order)
    np.testing.assert_array_equal(decode(content, tmp_path / "x.tif"), PHOTO)


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "packbits"])
def test_libtiffs_own_files_with_the_lowest_bit_first_are_read(
    tmp_path: Path, compression: str
) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(PHOTO).save(path, compression=compression, tiffinfo={FILL_ORDER: 2})
    with Image.open(path) as image:
        assert image.tag_v2[FILL_ORDER] == 2  # type: ignore[attr-defined]
    np.testing.assert_array_equal(decode_image(path, side_px=512).rgb, PHOTO)


@pytest.mark.parametrize("photometric", [0, 1, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_with_the_lowest_first_have_their_levels(
    tmp_path: Path, bits: int, photometric: int
) -> None:
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 1 << bits, (9, 16)).astype(np.uint8)
    data = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]).tobytes()
    grey = (values * (255 // ((1 << bits) - 1)))[..., None].repeat(3, axis=2)
    palette = rng.integers(0, 256, (1 << bits, 3))
    tags = one_strip(data, values.shape, [bits], photometric) | LOWEST_BIT_FIRST
    if photometric == 3:
        tags[320] = (palette.T * 257).ravel().tolist()
    got = decode(tiff(tags, turned(data)), tmp_path / "x.tif")
    np.testing.assert_array_equal(got, {0: 255 - grey, 1: grey, 3: palette[values]}[photometric])


@pytest.mark.parametrize("place", [300, -1])
def test_a_changed_byte_is_damage_in_either_order_of_bits(tmp_path: Path, place: int) -> None:
    data = bytearray(zlib.compress(PHOTO.tobytes()))
    data[place] ^= 0x10
    tags = one_strip(bytes(data), (30, 40), [8] * 3, 2, DEFLATE)
    for content in (tiff(tags, bytes(data)), tiff(tags | LOWEST_BIT_FIRST, turned(data))):
        with pytest.raises(UnusableImageError, match="damaged: strip 1 of the TIFF is"):
            decode(content, tmp_path / "x.tif")


def of_every_kind() -> dict[str, bytes]:
    """Return a black TIFF of each kind that Pillow opens."""
    files = {}
    for key, (mode, raw_mode) in TiffImagePlugin.OPEN_INFO.items():
        prefix, photometric, formats, fill_order, bits, extra = key
        data = (b"\xff" if photometric == 0 else b"\0") * (sum(bits) * 8)
        tags = one_strip(data, (8, 8), list(bits), photometric)
        tags |= {FILL_ORDER: [fill_order], 339: list(formats)}
        tags |= {EXTRA_SAMPLES: list(extra)} if extra else {}
        tags |= {320: [0] * (3 << bits[0])} if photometric == 3 else {}
        order = "<" if prefix == b"II" else ">"
        files[f"{mode}, {raw_mode}, {key}"] = tiff(tags, data, order=order)
    return files


def test_every_kind_is_read_or_refused_with_a_remedy(tmp_path: Path) -> None:
    read: set[str] = set()
    for kind, content in of_every_kind().items():
        try:
            assert decode(content, tmp_path / "x.tif").shape == (8, 8, 3), kind
            read.add(kind.partition(",")[0])
        except UnusableImageError as error:
            assert "save it as" in str(error) or "give --range" in str(error), kind
    deep = {"I", "I;16", "I;16B"}
    assert read == deep | {"1", "L", "La", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def test_a_mask_is_of_no_kind_whose_black_is_not_0(tmp_path: Path) -> None:
    path, taken = tmp_path / "x.tif", set()
    for kind, content in of_every_kind().items():
        path.write_bytes(content)
        try:
            assert not read_mask(path, Frame(1, (8, 8))).any()
            taken.add(kind.partition(",")[0])
        except UnusableImageError as error:
            assert "save 8-bit grey, 0 = none" in str(error), kind
    assert taken == {"1", "L", "P", "RGB"}


@pytest.mark.parametrize("extra", [None, 0, 2])
@pytest.mark.parametrize("compression", [RAW, DEFLATE])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_a_fourth_plane_without_a_name_is_refused(
    tmp_path: Path, layout: str, compression: int, extra: int | None
) -> None:
    """Pillow mixes up the edges of its tiles, or counts it twice."""
    tags, _ = picture(layout)
    planes = [*np.moveaxis(PHOTO, 2, 0), np.full(PHOTO.shape[:2], 255, np.uint8)]
    pieces = [compressed(piece, compression) for plane in planes for piece in cut_up(plane, layout)]
    lengths = [len(piece) for piece in pieces]
    places = [8 + sum(lengths[:at]) for at in range(len(pieces))]
    where = (STRIPS, LENGTHS) if layout == "strips" else (TILES, TILE_LENGTHS)
    tags |= {258: [8] * 4, 259: [compression], 277: [4], 284: [2]}
    tags |= dict(zip(where, (places, lengths), strict=True))
    tags |= {} if extra is None else {EXTRA_SAMPLES: [extra]}
    content = tiff(tags, b"".join(pieces))
    if extra:
        np.testing.assert_array_equal(decode(content, tmp_path / "x.tif"), PHOTO)
        return
    with pytest.raises(UnusableImageError, match="cannot be read: save it as"):
        decode(content, tmp_path / "x.tif")
