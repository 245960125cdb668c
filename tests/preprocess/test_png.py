"""A PNG is read if it has what its header states, and what it says of transparency is followed."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from preprocess.images.arrays import Pixels
from preprocess.images.decode import Frame, decode_image, load_mask, read_mask
from preprocess.images.png import bare_grey
from preprocess.images.reading import UNUSABLE, Reading, UnusableImageError
from tests.preprocess.support import photo

Chunk = tuple[bytes, bytes]
GREY, RGB, INDEXED = 0, 2, 3
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
"""Of Adam7, but for the last: first row and column, steps down and right."""
PALETTE = (b"PLTE", bytes(range(12)))
PHOTO = photo(3, height=19, width=13)
ROWS = b"".join(b"\0" + row.tobytes() for row in PHOTO)
LARGE = zlib.compress(bytes(2_000_000))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    idat: bytes,
    *before: Chunk,
    depth: int = 8,
    colour: int = RGB,
    interlaced: bool = False,
    after: tuple[Chunk, ...] = (),
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", idat), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def whole(idat: bytes, *before: Chunk, after: tuple[Chunk, ...] = ()) -> bytes:
    return png(13, 19, idat, *before, after=after)


def decode(content: bytes, path: Path) -> Pixels:
    path.write_bytes(content)
    return decode_image(path, side_px=512).rgb


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.png"


PARTS = {
    "few rows": (zlib.compress(ROWS[: len(ROWS) // 2]), "hold fewer bytes than its size needs"),
    "a byte too few": (zlib.compress(ROWS[:-1]), "hold fewer bytes|truncated"),
    "many rows": (zlib.compress(ROWS + ROWS[:40]), "hold more bytes than its size needs"),
    "a bomb": (zlib.compress(bytes(20_000_000)), "hold more bytes than its size needs"),
    "no checksum": (zlib.compress(ROWS)[:-4], "end before their checksum"),
    "a wrong checksum": (zlib.compress(ROWS)[:-4] + b"none", "incorrect data check"),
}


@pytest.mark.parametrize("part", PARTS)
def test_pixels_are_as_many_as_the_header_states(path: Path, part: str) -> None:
    idat, reason = PARTS[part]
    np.testing.assert_array_equal(decode(whole(zlib.compress(ROWS)), path), PHOTO)
    with pytest.raises(UnusableImageError, match=f"damaged: the PNG's pixels.*({reason})"):
        decode(whole(idat), path)


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5), (2, 3), (8, 8), (13, 19)])
@pytest.mark.parametrize("rows_more", [-1, 0, 1])
def test_interlaced_pixels_are_counted_too(
    path: Path, size: tuple[int, int], rows_more: int
) -> None:
    width, height = size
    pixels = photo(1, height=height, width=width)
    passes = [pixels[top::down, left::right] for top, left, down, right in PASSES]
    lines = [b"\0" + row.tobytes() for part in (*passes, pixels[1::2]) for row in part if row.size]
    lines = lines[:-1] if rows_more < 0 else lines + lines[-1:] * rows_more
    content = png(width, height, zlib.compress(b"".join(lines)), interlaced=True)
    if rows_more:
        with pytest.raises(UnusableImageError, match="bytes than its size needs"):
            decode(content, path)
    else:
        np.testing.assert_array_equal(decode(content, path), pixels)


def test_bytes_behind_the_pixels_are_no_damage(path: Path) -> None:
    idat = zlib.compress(ROWS)
    for pieces in ([idat + b"more"], [idat[:7], b"", idat[7:]], [idat, b"more"]):
        content = whole(pieces[0], after=tuple((b"IDAT", piece) for piece in pieces[1:]))
        np.testing.assert_array_equal(decode(content, path), PHOTO)


@pytest.mark.parametrize("kind", ["none", "behind the pixels", "too short", "long enough"])
@pytest.mark.parametrize("depth", [2, 8])
def test_an_indexed_png_needs_a_palette_with_its_colours(path: Path, kind: str, depth: int) -> None:
    row = b"\0\x1b" if depth == 2 else bytes([0, 0, 1, 2, 3])  # colours 0 to 3
    before = {"too short": [(b"PLTE", bytes(9))], "long enough": [PALETTE]}.get(kind, [])
    after = (PALETTE,) if kind == "behind the pixels" else ()
    idat = zlib.compress(row)
    content = png(4, 1, idat, *before, depth=depth, colour=INDEXED, after=after)
    if kind == "long enough":
        assert decode(content, path).ravel().tolist() == list(range(12))
        return
    with pytest.raises(UnusableImageError, match=r"damaged: .*palette"):
        decode(content, path)


def test_a_png_has_one_header(path: Path) -> None:
    other = struct.pack(">IIBBBBB", 13, 19, 8, RGB, 0, 0, 0)
    with pytest.raises(UnusableImageError, match="does not have one header"):
        decode(whole(zlib.compress(ROWS), (b"IHDR", other)), path)


def test_a_png_has_one_palette(path: Path) -> None:
    black = (b"PLTE", bytes(len(PALETTE[1])))
    for after in ((PALETTE, black), (black, PALETTE)):
        content = png(4, 1, zlib.compress(bytes([0, 0, 1, 2, 3])), *after, depth=8, colour=INDEXED)
        with pytest.raises(UnusableImageError, match="one palette at most"):
            decode(content, path)


@pytest.mark.parametrize("place", [(13, 19, 0, 0), (12, 19, 0, 0), (13, 18, 0, 1)])
def test_an_animations_first_frame_is_as_large_as_the_picture(
    path: Path, place: tuple[int, ...]
) -> None:
    frame = (b"fcTL", struct.pack(">5I2H2B", 0, *place, 1, 10, 0, 0))
    later = (b"fcTL", struct.pack(">5I2H2B", 1, 1, 1, 2, 2, 1, 10, 0, 0))
    after = (later, (b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes(4))))
    content = whole(zlib.compress(ROWS), (b"acTL", struct.pack(">2I", 2, 0)), frame, after=after)
    if place == (13, 19, 0, 0):
        np.testing.assert_array_equal(decode(content, path), PHOTO)
        return
    with pytest.raises(UnusableImageError, match="first frame is not as large as the PNG"):
        decode(content, path)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_of_any_depth_lies_on_white(path: Path, depth: int) -> None:
    values = list(range(0, 1 << depth, max(1, (1 << depth) // 8)))
    hidden = values[len(values) // 2]
    bits = "".join(f"{value:0{depth}b}" for value in values).ljust(8, "0")
    row = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    # bits above those of the pixels do not count, see the format's section 11.3.1.1
    key = (b"tRNS", struct.pack(">H", hidden | (0x4000 if depth > 1 else 0)))
    content = png(len(values), 1, zlib.compress(b"\0" + row), key, depth=depth, colour=GREY)
    levels = [255 if v == hidden else 255 * v // ((1 << depth) - 1) for v in values]
    assert decode(content, path)[0, :, 0].tolist() == levels


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_transparent_16_bit_colour_is_compared_with_all_its_bits(
    path: Path, interlaced: bool
) -> None:
    hidden, other = (0x1234, 0x5678, 0x9ABC), (0x3434, 0x7878, 0xBCBC)
    near = (0x1234, 0x5678, 0x9ABD)
    pixels = [hidden, near, other]
    passes = [[0], [], [], [2], [], [1]] if interlaced else [[0, 1, 2]]
    rows = [
        b"\0" + struct.pack(f">{3 * len(p)}H", *(v for i in p for v in pixels[i])) for p in passes
    ]
    key = (b"tRNS", struct.pack(">3H", *hidden))
    idat = zlib.compress(b"".join(row for row in rows if len(row) > 1))
    content = png(3, 1, idat, key, depth=16, interlaced=interlaced)
    visible = [[0x12, 0x56, 0x9A], [0x34, 0x78, 0xBC]]
    assert decode(content, path)[0].tolist() == [[255] * 3, *visible]


@pytest.mark.parametrize(
    "profile", [b"name\0\0" + zlib.compress(bytes(3_000_000)), b"name\0\7" + LARGE, b""]
)
def test_a_profile_that_is_too_large_or_broken_costs_its_colours_alone(
    path: Path, profile: bytes
) -> None:
    path.write_bytes(whole(zlib.compress(ROWS), (b"iCCP", profile)))
    decoded = decode_image(path, side_px=512)
    np.testing.assert_array_equal(decoded.rgb, PHOTO)
    assert decoded.remarks == (UNUSABLE,)


TEXTS = {
    "zTXt": (b"zTXt", b"name\0\0" + LARGE),
    "zTXt of an unknown kind": (b"zTXt", b"name\0\7" + LARGE),
    "iTXt": (b"iTXt", b"name\0\1\0\0\0" + LARGE),
    "tEXt": (b"tEXt", b"name\0" + b"x" * 700_000),
}


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURS: dict[str, tuple[tuple[Chunk, ...], tuple[str, ...]]] = {
    "gamma of sRGB": (((b"gAMA", struct.pack(">I", 45455)),), ()),
    "linear": (((b"gAMA", struct.pack(">I", 100_000)),), (UNUSABLE,)),
    "cICP of sRGB": (((b"cICP", bytes([1, 13, 0, 1])),), ()),
    "BT.2100 PQ": (((b"cICP", bytes([9, 16, 0, 1])),), (UNUSABLE,)),
    "BT.2100 PQ and a profile": (
        ((b"cICP", bytes([9, 16, 0, 1])), (b"iCCP", b"x\0\0" + zlib.compress(PROFILE))),
        (),
    ),
    "a profile and a gamma": (
        ((b"iCCP", b"x\0\0" + zlib.compress(PROFILE)), (b"gAMA", struct.pack(">I", 100_000))),
        (),
    ),
}


@pytest.mark.parametrize("stated", COLOURS)
def test_colours_that_a_chunk_calls_other_than_srgb_are_remarked(path: Path, stated: str) -> None:
    chunks, remarks = COLOURS[stated]
    path.write_bytes(whole(zlib.compress(ROWS), *chunks))
    got = decode_image(path, side_px=512)
    np.testing.assert_array_equal(got.rgb, PHOTO)
    assert got.remarks == remarks
    assert decode_image(path, side_px=512, reading=Reading(icc=False)).remarks == ()


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_large_texts_do_not_cost_the_pixels(path: Path, text: str, behind: bool) -> None:
    texts = (TEXTS[text],) * 100
    content = whole(zlib.compress(ROWS), *(() if behind else texts), after=texts if behind else ())
    np.testing.assert_array_equal(decode(content, path), PHOTO)


def test_the_colours_of_a_palette_may_be_transparent(path: Path) -> None:
    alpha = (b"tRNS", b"\xff\0")
    content = png(4, 1, zlib.compress(b"\0\x1b"), PALETTE, alpha, depth=2, colour=INDEXED)
    assert decode(content, path).ravel().tolist() == [0, 1, 2, 255, 255, 255, *range(6, 12)]


def filtered(pixels: Pixels, kinds: list[int]) -> bytes:
    """Return the rows of (H, W) uint8, each by a filter: formulas of the PNG standard, section 9.2.

    They are written with whole arrays: those of a decoder, which go pixel by pixel, cannot be.
    """
    padded = np.pad(pixels.astype(int), ((1, 0), (1, 0)))
    x, a, b, c = padded[1:, 1:], padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distances = np.abs(np.stack([a, b, c]) - (a + b - c))
    paeth = np.choose(distances.argmin(axis=0), [a, b, c])
    coded = np.stack([x, x - a, x - b, x - (a + b) // 2, x - paeth]) % 256
    rows = [bytes([kind, *coded[kind, y]]) for y, kind in enumerate(kinds)]
    return b"".join(rows)


@st.composite
def greys(draw: st.DrawFn) -> tuple[Pixels, list[int]]:
    """Return (H, W) uint8, noise or flat areas as masks have, and a filter for each row."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    values = st.sampled_from([0, 1, 255]) if draw(st.booleans()) else st.integers(0, 255)
    flat = draw(st.lists(values, min_size=height * width, max_size=height * width))
    kinds = draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    return np.array(flat, np.uint8).reshape(height, width), kinds


@settings(deadline=None, max_examples=300)
@given(greys())
def test_plain_grey_pngs_of_any_filters_are_those_that_pillow_reads(
    drawn: tuple[Pixels, list[int]],
) -> None:
    pixels, kinds = drawn
    height, width = pixels.shape
    content = png(width, height, zlib.compress(filtered(pixels, kinds)), colour=GREY)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    found = bare_grey(io.BytesIO(content), most=height * width)
    np.testing.assert_array_equal(found, pixels)
    assert bare_grey(io.BytesIO(content), most=height * width - 1) is None


def test_any_plain_grey_file_is_read_as_a_mask(path: Path) -> None:
    grey = PHOTO[..., 0] // 200
    parts = [grey[y::down, x::right] for y, x, down, right in (*PASSES, (1, 0, 2, 1))]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    interlaced = png(13, 19, zlib.compress(rows), colour=GREY, interlaced=True)
    pieces = zlib.compress(filtered(grey, [4] * 19), 0)
    split = png(13, 19, pieces[50:], (b"IDAT", pieces[:20]), (b"IDAT", pieces[20:50]), colour=GREY)
    for content in (interlaced, split):
        path.write_bytes(content)
        np.testing.assert_array_equal(read_mask(path, Frame(1, (13, 19))), grey != 0)


def test_masks_of_which_more_is_stated_are_left_to_pillow(path: Path) -> None:
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PHOTO[..., 0]))
    others = {
        "text": png(13, 19, rows, (b"tEXt", b"a\0b"), colour=GREY),
        "behind the pixels": png(13, 19, rows, colour=GREY, after=((b"tEXt", b"a\0b"),)),
        "transparent": png(13, 19, rows, (b"tRNS", b"\0\7"), colour=GREY),
        "colours": whole(zlib.compress(ROWS)),
        "deep": png(6, 19, zlib.compress(bytes(19 * 13)), colour=GREY, depth=16),
    }
    for kind, content in others.items():
        path.write_bytes(content)
        assert bare_grey(io.BytesIO(content), most=10**6) is None, kind
        assert np.asarray(load_mask(path, lossy=False)).shape[0] == 19


DAMAGED = {
    "a wrong checksum": lambda rows: zlib.compress(rows)[:-1] + b"\0",
    "few rows": lambda rows: zlib.compress(rows[:-14]),
    "many rows": lambda rows: zlib.compress(rows + rows[:14]),
    "a filter that there is not": lambda rows: zlib.compress(b"\5" + rows[1:]),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_plain_grey_masks_are_refused(path: Path, kind: str) -> None:
    rows = filtered(PHOTO[..., 0], [0, 1, 2, 3, 4] * 3 + [4] * 4)
    path.write_bytes(png(13, 19, zlib.compress(rows), colour=GREY))
    read_mask(path, Frame(1, (13, 19)))
    path.write_bytes(png(13, 19, DAMAGED[kind](rows), colour=GREY))
    with pytest.raises(UnusableImageError, match=r"the PNG's pixels|broken|unrecognized|OSError"):
        read_mask(path, Frame(1, (13, 19)))


def test_a_plain_grey_mask_with_any_byte_flipped_is_refused_or_the_same(path: Path) -> None:
    whole_file = png(13, 19, zlib.compress(filtered(PHOTO[..., 0], [4] * 19)), colour=GREY)
    for place in range(len(whole_file)):
        flipped = bytearray(whole_file)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(UnusableImageError):
            read_mask(path, Frame(1, (13, 19)))
