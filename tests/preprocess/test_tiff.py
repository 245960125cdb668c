"""A TIFF is read if it has the strips or tiles that its size needs, each with its bytes."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from preprocess.images.arrays import Pixels
from preprocess.images.decode import Decoded, decode_image
from preprocess.images.listing import list_images
from preprocess.images.reading import (
    UNNAMED_ALPHA,
    Reading,
    UnusableImageError,
    parse_range,
)
from tests.preprocess.support import photo

RAW, DEFLATE, LZW, PACKBITS = 1, 8, 5, 32773
STRIPS, LENGTHS, ROWS, TILES, TILE_LENGTHS = 273, 279, 278, 324, 325
PHOTO = photo(3, height=30, width=40)
Tags = dict[int, list[int]]


def tiff(tags: Tags, data: bytes = b"", *, order: str = "<") -> bytes:
    """Return a TIFF with ``data`` at byte 8 and the tags behind it, all of type LONG."""
    place = 8 + len(data)
    behind = place + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, value in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(value)}I", *value)
        entries += struct.pack(f"{order}HHI", tag, 4, len(value))
        entries += packed if len(value) == 1 else struct.pack(f"{order}I", behind + len(values))
        values += packed if len(value) != 1 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values


def compressed(piece: bytes, compression: int) -> bytes:
    if compression == PACKBITS:  # runs of 1 to 128 literal bytes
        runs = (piece[at : at + 120] for at in range(0, len(piece), 120))
        return b"".join(bytes([len(run) - 1]) + run for run in runs)
    return zlib.compress(piece) if compression == DEFLATE else piece


def cut_up(pixels: Pixels, layout: str) -> list[bytes]:
    """Return the bytes of strips of 8 rows, or of tiles of 16 x 16, of one plane."""
    if layout != "tiles":
        return [pixels[at : at + 8].tobytes() for at in range(0, 30, 8)]
    full = np.pad(pixels, ((0, 2), (0, 8)) + ((0, 0),) * (pixels.ndim - 2))
    places = [(y, x) for y in (0, 16) for x in (0, 16, 32)]
    return [full[y : y + 16, x : x + 16].tobytes() for y, x in places]


def picture(
    layout: str = "strips", compression: int = RAW, order: str = "<", bits: int = 8
) -> tuple[Tags, bytes]:
    """Return the tags and data of `PHOTO`; layout: strips, tiles or planes (of strips)."""
    pixels = PHOTO.astype(f"{order}u{bits // 8}") * (257 if bits == 16 else 1)
    pixels = pixels.astype(f"{order}u{bits // 8}")
    planes = np.moveaxis(pixels, 2, 0) if layout == "planes" else [pixels]
    pieces = [compressed(p, compression) for plane in planes for p in cut_up(plane, layout)]
    lengths = [len(piece) for piece in pieces]
    starts = [8 + sum(lengths[:at]) for at in range(len(pieces))]
    tags = {256: [40], 257: [30], 258: [bits] * 3, 259: [compression], 262: [2], 277: [3]}
    if layout == "tiles":
        tags |= {322: [16], 323: [16], TILES: starts, TILE_LENGTHS: lengths}
    else:
        tags |= {ROWS: [8], STRIPS: starts, LENGTHS: lengths}
    return tags | {284: [2 if layout == "planes" else 1]}, b"".join(pieces)


def decode(content: bytes, path: Path) -> Pixels:
    path.write_bytes(content)
    return decode_image(path, side_px=512).rgb


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tif"


@pytest.mark.parametrize("compression", [RAW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
def test_whole_files_give_their_pixels(path: Path, layout: str, compression: int) -> None:
    for order, bits in (("<", 8), (">", 8), ("<", 16), (">", 16)):
        if (layout, compression, bits) != ("planes", RAW, 16):
            tags, data = picture(layout, compression, order, bits)
            np.testing.assert_array_equal(decode(tiff(tags, data, order=order), path), PHOTO)


BROKEN = {
    "too few": "states . places and . lengths of .*s, its size needs",
    "too many": "states .* places and .* lengths of .*s, its size needs",
    "no lengths": "and 0 lengths",
    "nowhere": "is empty or lies outside the file",
    "empty": "is empty or lies outside the file",
    "outside": "is empty or lies outside the file",
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("compression", [RAW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
def test_strips_and_tiles_are_all_there(
    path: Path, layout: str, compression: int, how: str
) -> None:
    tags, data = picture(layout, compression)
    starts, lengths = (TILES, TILE_LENGTHS) if layout == "tiles" else (STRIPS, LENGTHS)
    if how in ("too few", "too many"):
        for tag in (starts, lengths):
            tags[tag] = tags[tag][:2] if how == "too few" else tags[tag] + tags[tag][-1:]
    elif how == "no lengths":
        del tags[lengths]
    elif how == "empty":
        tags[lengths][1] = 0
    else:
        tags[starts][1] = 0 if how == "nowhere" else 1_000_000
    with pytest.raises(UnusableImageError, match=f"{BROKEN[how]}|cannot be read"):
        decode(tiff(tags, data), path)


@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
def test_uncompressed_rows_have_all_their_bytes(path: Path, layout: str) -> None:
    tags, data = picture(layout)
    tags[TILE_LENGTHS if layout == "tiles" else LENGTHS][1] -= 1
    with pytest.raises(UnusableImageError, match=r"2 of the TIFF has \d+ bytes, its rows need"):
        decode(tiff(tags, data), path)


AMOUNTS = {
    "fewer": (zlib.compress(bytes(3599)), "hold fewer bytes"),
    "more": (zlib.compress(bytes(3601)), "hold more bytes"),
    "no sum": (zlib.compress(bytes(3600))[:-4], "end before their checksum"),
    "a wrong sum": (zlib.compress(bytes(3600))[:-4] + b"none", "incorrect data check"),
}


@pytest.mark.parametrize("amount", AMOUNTS)
def test_deflated_rows_are_as_many_as_stated(path: Path, amount: str) -> None:
    data, reason = AMOUNTS[amount]
    tags = picture()[0] | {259: [DEFLATE], ROWS: [30], STRIPS: [8], LENGTHS: [len(data)]}
    with pytest.raises(UnusableImageError, match=f"strip 1 of the TIFF.*{reason}"):
        decode(tiff(tags, data), path)


def test_a_last_strip_may_be_filled_up(path: Path) -> None:
    tags, data = picture(compression=DEFLATE)
    last = zlib.compress(PHOTO[24:].tobytes() + bytes(2 * 40 * 3))
    tags[STRIPS][-1], tags[LENGTHS][-1] = 8 + len(data), len(last)
    np.testing.assert_array_equal(decode(tiff(tags, data + last), path), PHOTO)


BOMB = zlib.compress(bytes(50_000_000))
BOMBS: dict[str, tuple[Tags, str]] = {
    "one strip 20 times": ({STRIPS: [8] * 20, LENGTHS: [len(BOMB)] * 20}, "its size needs 1"),
    "one strip per row": (
        {ROWS: [1], STRIPS: [8] * 30, LENGTHS: [len(BOMB)] * 30},
        "lie over each other",
    ),
    "one strip": ({STRIPS: [8], LENGTHS: [len(BOMB)]}, "hold more bytes"),
    "a large tile": (
        {322: [1 << 20], 323: [1 << 20], TILES: [8], TILE_LENGTHS: [len(BOMB)]},
        "smaller tiles",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_more_is_inflated_than_the_size_needs(path: Path, bomb: str) -> None:
    added, reason = BOMBS[bomb]
    tags = {tag: value for tag, value in picture()[0].items() if tag not in (ROWS, STRIPS, LENGTHS)}
    started = time.process_time()
    with pytest.raises(UnusableImageError, match=reason):
        decode(tiff(tags | {259: [DEFLATE]} | added, BOMB), path)
    assert time.process_time() - started < 0.5  # 20 times all of it take 2 s


@pytest.mark.parametrize("order", ["<", ">"])
def test_uncompressed_planes_of_16_bits_are_refused_by_name(path: Path, order: str) -> None:
    tags, data = picture("planes", order=order, bits=16)
    with pytest.raises(UnusableImageError, match=r"16/16/16 bits.*separate planes.*save it with"):
        decode(tiff(tags, data, order=order), path)


@pytest.mark.parametrize("scale", [1, 257])
def test_a_palette_of_8_bits_in_16_has_its_colours(path: Path, scale: int) -> None:
    channel = [level * scale for level in range(256)]
    tags = {256: [2], 257: [1], 258: [8], 259: [RAW], 262: [3], 277: [1], 320: channel * 3}
    tags |= {STRIPS: [8], LENGTHS: [2]}
    assert decode(tiff(tags, b"\x0a\xc8"), path).tolist() == [[[10] * 3, [200] * 3]]


def rgba(path: Path, extra: dict[int, list[int]]) -> Decoded:
    pixels = np.dstack([PHOTO, np.where(PHOTO[..., 0] > 99, 255, 0).astype(np.uint8)])
    tags = {256: [40], 257: [30], 258: [8] * 4, 259: [RAW], 262: [2], 277: [4], ROWS: [30]}
    data = pixels.tobytes()
    path.write_bytes(tiff(tags | {STRIPS: [8], LENGTHS: [len(data)]} | extra, data))
    return decode_image(path, side_px=512)


def test_a_fourth_value_without_a_name_is_transparency_and_remarked(path: Path) -> None:
    blended = np.where(PHOTO[..., :1] > 99, PHOTO, 255)
    for extra, expected, remarks in (
        ({}, blended, (UNNAMED_ALPHA,)),
        ({338: [0]}, PHOTO, ()),  # of no meaning
        ({338: [2]}, blended, ()),  # unassociated alpha
    ):
        got = rgba(path, extra)
        np.testing.assert_array_equal(got.rgb, expected)
        assert got.remarks == remarks
    cv2.imwrite(str(path), np.dstack([PHOTO, PHOTO[..., 0]]))
    assert decode_image(path, side_px=512).remarks == (UNNAMED_ALPHA,)


def test_other_inks_than_cmyk_are_refused_by_name(path: Path) -> None:
    assert rgba(path, {262: [5]}).rgb.shape == rgba(path, {262: [5], 332: [1]}).rgb.shape
    with pytest.raises(UnusableImageError, match=r"inks that are not CMYK \(InkSet 2\)"):
        rgba(path, {262: [5], 332: [2]})


def test_what_contradicts_itself_is_refused(path: Path) -> None:
    tags, data = picture()
    for added, reason in (
        ({TILES: [8], TILE_LENGTHS: [9]}, "both strips and tiles"),
        ({ROWS: [0]}, "no rows"),
        ({262: [3], 258: [8], 277: [1], 320: [0] * 30}, "palette"),
    ):
        with pytest.raises(UnusableImageError, match=reason):
            decode(tiff(tags | added, data), path)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_is_known_by_its_first_bytes(tmp_path: Path, big: bool) -> None:
    pixels = photo(3)
    Image.fromarray(pixels).save(tmp_path / "scan", "TIFF", big_tiff=big)
    assert (tmp_path / "scan").read_bytes()[:4] == (b"II+\0" if big else b"II*\0")
    assert list_images(tmp_path).images == ["scan"]
    np.testing.assert_array_equal(decode_image(tmp_path / "scan", side_px=512).rgb, pixels)


def test_a_large_tiff_that_cannot_be_read_is_described(tmp_path: Path) -> None:
    entry = struct.pack("<HHQQ", 262, 3, 1, 999)  # the only tag, photometric
    head = struct.pack("<4sHHQ", b"II+\0", 8, 0, 16)
    (tmp_path / "x.tif").write_bytes(head + struct.pack("<Q", 1) + entry + bytes(8))
    with pytest.raises(UnusableImageError, match="photometric 999 cannot be read"):
        decode_image(tmp_path / "x.tif", side_px=512)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "sample_format", "predictor"),
    [(kind, 1 + (kind[0] == "i"), by) for kind in ("u2", "i2", "i4") for by in (1, 2)]
    + [("f4", 3, 1), ("f4", 3, 3)],
)
def test_deflated_deep_greys_of_both_byte_orders_have_their_values(
    tmp_path: Path, kind: str, sample_format: int, order: str, predictor: int
) -> None:
    levels = PHOTO[..., 0].astype(np.float64)
    values = (levels * 2.0 ** (4 * int(kind[1]) - 4)).astype(kind)
    if predictor == 3:  # bytes of one weight beside each other, the heaviest first
        apart = values.astype(">f4").view(np.uint8).reshape(30, 40, 4).transpose(0, 2, 1)
        rows = apart.reshape(30, 160)
    else:
        rows = values
    steps = np.diff(rows, axis=1, prepend=rows[:, :1] * 0) if predictor > 1 else rows
    data = zlib.compress(steps.astype(steps.dtype.newbyteorder(order)).tobytes())
    tags = {256: [40], 257: [30], 258: [8 * values.itemsize], 259: [DEFLATE], 262: [1], 277: [1]}
    tags |= {ROWS: [30], STRIPS: [8], LENGTHS: [len(data)], 317: [predictor], 339: [sample_format]}
    (tmp_path / "x.tif").write_bytes(tiff(tags, data, order=order))
    reading = Reading(parse_range(f"0:{255 * 2.0 ** (4 * int(kind[1]) - 4)}"))
    got = decode_image(tmp_path / "x.tif", side_px=512, reading=reading).rgb
    np.testing.assert_array_equal(got[..., 0], PHOTO[..., 0])


@pytest.mark.parametrize("extra", [0, 2])
def test_a_grey_and_a_second_value_in_separate_planes_are_refused(
    tmp_path: Path, extra: int
) -> None:
    planes = [zlib.compress(PHOTO[..., band].tobytes()) for band in (0, 1)]
    lengths = [len(plane) for plane in planes]
    tags = {256: [40], 257: [30], 258: [8, 8], 259: [DEFLATE], 262: [1], 277: [2], 284: [2]}
    tags |= {ROWS: [30], STRIPS: [8, 8 + lengths[0]], LENGTHS: lengths, 338: [extra]}
    with pytest.raises(UnusableImageError, match="in separate planes cannot be read: save it with"):
        decode(tiff(tags, b"".join(planes)), tmp_path / "x.tif")
