"""BMP and GIF files whose palette counts up from black have the pixels that OpenCV finds."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocess.images.arrays import Pixels
from preprocess.images.decode import Frame, decode_image, read_mask
from preprocess.images.reading import UnusableImageError

Palette = list[tuple[int, int, int]]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GREYS: Palette = [(level, level, level) for level in range(256)]
OTHER: Palette = [(9 * level, 8, 7) for level in range(4)]


def indices(colours: int) -> Pixels:
    return np.random.default_rng(colours).integers(0, colours, (9, 17)).astype(np.uint8)


def bmp(values: Pixels, palette: Palette, bits: int, *, core: bool = False) -> bytes:
    """Return an uncompressed BMP; core: with the header of OS/2 1.x, whose palettes are full."""
    height, width = values.shape
    single = np.unpackbits(values[::-1, :, None], axis=2)[..., 8 - bits :]
    rows = [np.packbits(row).tobytes() for row in single.reshape(height, -1)]
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    if core:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        sizes = (len(data), 0, 0, len(palette), 0)
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, *sizes)
    table = b"".join(bytes([b, g, r] if core else [b, g, r, 0]) for r, g, b in palette)
    start = 14 + len(head) + len(table)
    file = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    return file + head + table + data


def gif(values: Pixels, shared: Palette | None, own: Palette | None = None) -> bytes:
    """Return a GIF of one frame: codes of 9 bits, cleared before they would need 10."""
    height, width = values.shape
    codes = [code for value in values.ravel() for code in (256, int(value))] + [257]
    packed = sum(code << 9 * place for place, code in enumerate(codes))
    data = packed.to_bytes((9 * len(codes) + 7) // 8, "little")
    blocks = [data[at : at + 255] for at in range(0, len(data), 255)]
    flags = [0 if p is None else 0x80 | ((len(p) - 1).bit_length() - 1) for p in (shared, own)]
    tables = [b"".join(map(bytes, p or ())) for p in (shared, own)]
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, flags[0], 0, 0) + tables[0]
    frame = struct.pack("<cHHHHB", b",", 0, 0, width, height, flags[1]) + tables[1]
    return screen + frame + b"\x08" + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0;"


FILES = {
    "BMP of 8 bits, black and white": bmp(indices(2), [BLACK, WHITE], 8),
    "BMP of 4 bits, black and white": bmp(indices(2), [BLACK, WHITE], 4),
    "BMP of 1 bit, black and white": bmp(indices(2), [BLACK, WHITE], 1),
    "BMP of 8 bits, white and black": bmp(indices(2), [WHITE, BLACK], 8),
    "BMP of 8 bits, black": bmp(indices(1), [BLACK], 8),
    "BMP of 8 bits, 256 greys": bmp(indices(256), GREYS, 8),
    "BMP of 8 bits, 100 greys": bmp(indices(100), GREYS[:100], 8),
    "BMP of 4 bits, 16 greys": bmp(indices(16), GREYS[:16], 4),
    "BMP of 4 bits, 5 greys": bmp(indices(5), GREYS[:5], 4),
    "BMP of OS/2, 256 greys": bmp(indices(256), GREYS, 8, core=True),
    "BMP of OS/2, black and white": bmp(indices(2), [BLACK, WHITE], 1, core=True),
    "GIF of 256 greys": gif(indices(256), GREYS),
    "GIF of 4 greys": gif(indices(4), GREYS[:4]),
    "GIF of 4 greys of its frame's own": gif(indices(4), None, GREYS[:4]),
    "GIF of its frame's own greys among others": gif(indices(4), OTHER, GREYS[:4]),
    "GIF of its frame's own colours among greys": gif(indices(4), GREYS[:4], OTHER),
}


@pytest.mark.parametrize("name", FILES)
def test_a_palette_is_followed_whatever_it_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(FILES[name])
    opencv = cv2.imdecode(np.frombuffer(FILES[name], np.uint8), cv2.IMREAD_COLOR_RGB)
    got = decode_image(tmp_path / "x", side_px=512).rgb
    np.testing.assert_array_equal(got, opencv)


def test_a_dib_has_the_pixels_of_its_bmp(tmp_path: Path) -> None:
    file = FILES["BMP of 4 bits, black and white"]
    (tmp_path / "x").write_bytes(file[14:])
    expected = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode_image(tmp_path / "x", side_px=512).rgb, expected)


def test_run_lengths_of_black_and_white_are_followed(tmp_path: Path) -> None:
    data = bytes([3, 0, 1, 1, 0, 0, 4, 1, 0, 1])  # 0 0 0 1, next row, 1 1 1 1, end
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 8, 1, len(data), 0, 0, 2, 0)
    file = struct.pack("<2sIHHI", b"BM", 62 + len(data), 0, 0, 62) + head
    (tmp_path / "x").write_bytes(file + b"\0\0\0\0\xff\xff\xff\0" + data)
    got = decode_image(tmp_path / "x", side_px=512).rgb
    assert got[..., 0].tolist() == [[255] * 4, [0, 0, 0, 255]]


@pytest.mark.parametrize(
    "file",
    [
        bmp(np.array([[0, 1, 2]], np.uint8), [BLACK, WHITE], 8),
        bmp(np.array([[0, 1, 2]], np.uint8), GREYS[:2], 8),
        bmp(np.array([[0, 9]], np.uint8), GREYS[:4], 8),
        gif(np.array([[0, 9]], np.uint8), GREYS[:4]),
        gif(np.array([[0, 9]], np.uint8), GREYS, GREYS[:4]),
    ],
    ids=["black and white", "nearly black", "BMP", "GIF", "GIF's frame"],
)
def test_greys_beyond_the_palette_are_damage(tmp_path: Path, file: bytes) -> None:
    (tmp_path / "x").write_bytes(file)
    with pytest.raises(
        UnusableImageError, match=r"colour [29] of the \w+'s palette, which ends at"
    ):
        decode_image(tmp_path / "x", side_px=512)


def test_a_gif_without_a_palette_has_no_colours(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gif(indices(4), None))
    with pytest.raises(UnusableImageError, match="damaged: the GIF has no palette"):
        decode_image(tmp_path / "x", side_px=512)


@pytest.mark.parametrize("name", ["BMP of 8 bits, black and white", "GIF of 4 greys"])
def test_a_mask_of_such_a_file_counts_by_index(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(FILES[name])
    expected = indices(4 if "GIF" in name else 2) != 0
    np.testing.assert_array_equal(read_mask(tmp_path / "x", Frame(1, (17, 9))), expected)


def bitmap(bits: int, coding: int, behind: bytes) -> bytes:
    """Return a BMP of 4 x 2 pixels; behind: what follows its header, masks or a palette first."""
    head = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, bits, coding, len(behind), 0, 0, 2, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(behind), 0, 0, 62) + head + behind


RARE = {
    "an early end": bitmap(8, 1, bytes(8) + bytes([4, 1, 0, 1])),
    "rare masks": bitmap(32, 3, struct.pack("<III", 0x30, 0xC0, 0x3) + bytes(32)),
}


@pytest.mark.parametrize("name", RARE)
def test_what_pillow_refuses_comes_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(RARE[name])
    with pytest.raises(UnusableImageError, match=r"Error: .*: copy it again if .* save it as PNG"):
        decode_image(tmp_path / "x", side_px=512)
