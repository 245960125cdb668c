"""JPEGs with tampered headers, TurboJPEG as their other reader, and buffers with guard pages.

`python -m tests.data.jpegfuzz COUNT SEED` decodes tampered files into buffers behind whose ends no
memory may be touched: a write out of bounds ends the process by SIGSEGV.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import ffcv._libffcv
import numpy as np
import numpy.typing as npt
from ffcv.reader import Reader
from PIL import Image

from harl_fast.data.container.fields import BitMaskField
from harl_fast.data.views import jpeg as jpegfile
from harl_fast.data.views.jpeg import BAD_JPEG, OK
from harl_fast.data.views.jpegscan import first_of_sound, judge_jpeg
from tests.betons import Item, plain_item, smooth_noise, write_beton

Bytes = npt.NDArray[np.uint8]
SAMPLES, CRAFTED = 30, 7
SAMPLINGS = {(3, 1, 1): 0, (3, 2, 1): 1, (3, 2, 2): 2, (1, 1, 1): 3, (3, 1, 2): 4}
"""TurboJPEG's TJSAMP_* of channels and luma samples per chroma sample across and down."""


def encoded(seed: int, height: int, width: int, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG of a picture with structure."""
    stream = io.BytesIO()
    picture = Image.fromarray(smooth_noise(seed, height, width)).convert(mode)
    picture.save(stream, "JPEG", **{"quality": 80, **options})
    return stream.getvalue()


def adobe(jpeg: bytes, transform: int) -> bytes:
    """Return a JPEG with Adobe's segment in place of JFIF's."""
    length = 2 + int.from_bytes(jpeg[4:6], "big")
    segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return jpeg[:2] + segment + jpeg[2 + length :]


def hidden(inner: bytes, outer: bytes, marker: int = 0xD0) -> bytes:
    """Return a JPEG that libjpeg reads as ``inner``, a reader of lengths everywhere as ``outer``.

    libjpeg reads no length after RST0 to RST7 and TEM: what follows is ``inner``'s first segment.
    """
    head = b"\xff\xd8\xff" + bytes([marker])
    # As a length, the marker of the next segment (FF E0) reaches 65,504 bytes on.
    covered = inner[2:].ljust(0xFFE0, b"\0")
    return head + covered + outer[2:]


def flat(height: int, width: int) -> bytes:
    """Return the JPEG of a picture of one colour, in few bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(stream, "JPEG", optimize=True)
    return stream.getvalue()


def crafted_jpeg() -> bytes:
    """Return a JPEG of 300 x 300 px to a reader of lengths, of 160 x 64000 to libjpeg."""
    return hidden(flat(64000, 160), flat(300, 300))


def crafted_beton(folder: Path) -> Path:
    """Write a container of `SAMPLES` samples; that of id `CRAFTED` holds `crafted_jpeg`."""

    def item(index: int) -> Item:
        image, mask, label = plain_item(index)
        if index == CRAFTED:  # noise: its JPEG has more bytes than the crafted one
            image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
        return image, mask, label

    path = write_beton(folder / "train.beton", item, count=SAMPLES)
    metadata = Reader(str(path), {"mask": BitMaskField}).metadata
    with open(path, "r+b") as stream:
        stream.seek(int(metadata[CRAFTED]["f0"]["data_ptr"]))
        stream.write(crafted_jpeg())
    return path


@lru_cache
def bases() -> tuple[bytes, ...]:
    """Return sound JPEGs of all kinds that are read, and of some that are not."""
    small = (40, 72)
    return (
        encoded(0, *small, subsampling=2),
        encoded(1, *small, subsampling=1, restart_marker_blocks=3),
        encoded(2, *small, subsampling=0, restart_marker_blocks=1),
        encoded(3, *small, mode="L"),
        encoded(4, *small, mode="L", restart_marker_blocks=9),
        encoded(5, 97, 160, restart_marker_blocks=5, comment=b"text"),
        adobe(encoded(6, *small), 1),
        adobe(encoded(7, *small, subsampling=0), 0),
        encoded(8, *small, progressive=True),
        encoded(9, *small, mode="CMYK"),
        encoded(10, *small, optimize=True),
    )


def _split(jpeg: bytes) -> list[bytes]:
    """Return the segments before a sound JPEG's scan, its start first and the scan last."""
    parts, at = [jpeg[:2]], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        parts.append(jpeg[at:end])
        at = end
    return [*parts, jpeg[at:]]


def tampered(rng: np.random.Generator) -> Bytes:
    """Return a JPEG whose header one to four random changes have been made to."""
    known = bases()
    parts = _split(known[rng.integers(len(known))])
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(1, len(parts)))
        _CHANGES[rng.integers(len(_CHANGES))](parts, place, rng)
    return np.frombuffer(b"".join(parts), np.uint8).copy()


def _insert_marker(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    code = [*range(0xD0, 0xDA), 0x01, 0x00, 0xFF, int(rng.integers(256))][rng.integers(14)]
    parts.insert(place, bytes([0xFF, code]))


def _insert_segment(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    body = rng.bytes(int(rng.integers(0, 20)))
    length = (len(body) + 2 + int(rng.integers(-2, 3)) * int(rng.integers(2))) & 0xFFFF
    code = [0xDC, 0xDD, 0xCC, 0xFE, 0xE0, 0xEE, 0xC4, 0xDB, int(rng.integers(256))][rng.integers(9)]
    parts.insert(place, bytes([0xFF, code]) + length.to_bytes(2, "big") + body)


def _insert_bytes(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    parts.insert(place, [b"\xff", b"\0", rng.bytes(3)][rng.integers(3)])


def _delete(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    if len(parts) > 2:
        del parts[place]


def _duplicate(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    parts.insert(int(rng.integers(1, len(parts))), parts[place])


def _splice(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    other = _split(bases()[rng.integers(len(bases()))])
    parts[place:place] = other[int(rng.integers(2)) : int(rng.integers(1, len(other) + 1))]


def _hide(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    inner = bases()[rng.integers(len(bases()))]
    marker = [*range(0xD0, 0xD8), 0x01][rng.integers(9)]
    whole = hidden(inner, b"".join(parts), marker)
    parts[:] = [whole[:2], whole[2:4], whole[4:]]


def _flip(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    changed = bytearray(parts[place])
    reach = len(changed) if rng.integers(2) else min(len(changed), 40)
    for _ in range(int(rng.integers(1, 4))):
        changed[int(rng.integers(reach))] = int(rng.integers(256))
    parts[place] = bytes(changed)


def _resize(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    for number, part in enumerate(parts):
        if part[:1] == b"\xff" and part[1:2] in (b"\xc0", b"\xc1", b"\xc2") and len(part) > 12:
            changed = bytearray(part)
            sizes = [0, 1, 7, 8, 40, 41, 72, 200, 65500, 65535]
            for at in (5, 7):
                changed[at : at + 2] = int(rng.choice(sizes)).to_bytes(2, "big")
            changed[11] = int(rng.choice([0x11, 0x21, 0x12, 0x22, 0x41, 0x33, 0x00]))
            parts[number] = bytes(changed)


def _restart(parts: list[bytes], place: int, rng: np.random.Generator) -> None:
    interval = int(rng.choice([0, 1, 2, 3, 5, 9, 65535]))
    parts.insert(place, b"\xff\xdd\x00\x04" + interval.to_bytes(2, "big"))


_CHANGES: tuple[Callable[[list[bytes], int, np.random.Generator], None], ...] = (
    _insert_marker,
    _insert_segment,
    _insert_bytes,
    _delete,
    _duplicate,
    _splice,
    _hide,
    _flip,
    _resize,
    _restart,
)


class Turbo:
    """TurboJPEG's own reading of headers, through ctypes."""

    def __init__(self) -> None:
        self.turbojpeg = ctypes.CDLL(ffcv._libffcv.__file__)
        self.turbojpeg.tjInitDecompress.restype = ctypes.c_void_p
        self.turbojpeg.tjDestroy.argtypes = [ctypes.c_void_p]

    def header(self, data: Bytes) -> tuple[int, int, int, int] | None:
        """Return width, height, TJSAMP_* and TJCS_*, or None where it finds no picture."""
        found = [ctypes.c_int(-1) for _ in range(4)]
        decoder = ctypes.c_void_p(self.turbojpeg.tjInitDecompress())
        size = ctypes.c_ulong(data.size)
        places = [ctypes.byref(number) for number in found]
        start = ctypes.c_void_p(data.ctypes.data)
        code = self.turbojpeg.tjDecompressHeader3(decoder, start, size, *places)
        self.turbojpeg.tjDestroy(decoder)
        width, height, sampling, colours = (number.value for number in found)
        return None if code or width < 0 else (width, height, sampling, colours)


def our_header(data: Bytes) -> tuple[int, int, int, int] | None:
    """Return the same by `parse_jpeg`, or None for what it refuses."""
    layout = np.empty(jpegfile.LAYOUT, np.int64)
    if jpegfile.parse_jpeg(data, layout) != OK:
        return None
    channels = int(layout[jpegfile.CHANNELS])
    key = (channels, int(layout[jpegfile.FACTOR_X]), int(layout[jpegfile.FACTOR_Y]))
    colours = 2 if channels == 1 else 1
    return int(layout[jpegfile.WIDTH]), int(layout[jpegfile.HEIGHT]), SAMPLINGS[key], colours


class Guarded:
    """Arrays that end where memory ends: the page behind them may not be touched."""

    def __init__(self, room: int) -> None:
        page = mmap.PAGESIZE
        self._room = -(-room // page) * page
        self._map = mmap.mmap(-1, self._room + page)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(self._start + self._room)
        assert libc.mprotect(guard, ctypes.c_size_t(page), 0) == 0, ctypes.get_errno()

    def array(self, size: int) -> Bytes | None:
        """Return (size,) uint8 that ends at the guard, or None if there is no such room."""
        if size > self._room:
            return None
        where = self._start + self._room - size
        return np.frombuffer((ctypes.c_uint8 * size).from_address(where), np.uint8)


def decode_guarded(data: Bytes, room: tuple[Guarded, ...], rng: np.random.Generator) -> str:
    """Decode a part of ``data`` and the whole with every buffer at a guard; return what came out.

    room: for the file's bytes, the excerpt and the planes or pixels.
    """
    layout = np.empty(jpegfile.LAYOUT, np.int64)
    source = room[0].array(data.size)
    assert source is not None
    source[:] = data
    if jpegfile.parse_jpeg(source, layout) != OK:
        return "refused"
    height, width = int(layout[jpegfile.HEIGHT]), int(layout[jpegfile.WIDTH])
    planes = room[2].array(jpegfile.planes_size(height, width))
    excerpt = room[1].array(jpegfile.excerpt_size(data.size))
    if planes is None or excerpt is None:
        return "too large"
    top, left = int(rng.integers(height)), int(rng.integers(width))
    union = (top, left, int(rng.integers(top, height)) + 1, int(rng.integers(left, width)) + 1)
    window = np.empty(jpegfile.WINDOW, np.int64)
    decoder = np.array([jpegfile.open_decoder()], np.uintp)
    status = jpegfile.decode_planes(decoder, source, layout, union, excerpt, planes, window)
    jpegfile.close_decoder(decoder[0])
    pixels = room[2].array(3 * height * width)
    assert pixels is not None
    whole = jpegfile.decode_jpeg(source, pixels.reshape(height, width, 3))
    assert status in (OK, BAD_JPEG) and whole in (OK, BAD_JPEG)
    stream = room[1].array(data.size)
    assert stream is not None
    stream[:] = rng.integers(256)  # zeros and other bytes are codes of some files
    first_of_sound(source, layout, stream)
    assert whole == judge_jpeg(source, (height, width))
    return f"part {status}, whole {whole}"


def judge_cut(room: Guarded) -> None:
    """Look for codes in scans that were cut short, of pictures larger than the rest of a page."""
    for kind in ({"mode": "L"}, {}, {"restart_marker_blocks": 2}):
        whole = np.frombuffer(encoded(1, 400, 500, **kind), np.uint8)
        layout = np.empty(jpegfile.LAYOUT, np.int64)
        assert jpegfile.parse_jpeg(whole, layout) == OK
        head = int(layout[jpegfile.SCAN_AT])
        for cut in (whole[:head], whole[: head + 40], whole[:-2]):
            for byte in range(256):  # each is a code of some table
                stream = room.array(cut.size)
                assert stream is not None
                stream[:] = byte
                assert first_of_sound(cut, layout, stream).size == 0


def main(count: int, seed: int) -> None:
    """Decode tampered files and print how many came to what."""
    rng = np.random.default_rng(seed)
    room = tuple(Guarded(size) for size in (1 << 20, 1 << 20, 1 << 23))
    told: dict[str, int] = {}
    for _ in range(count):
        result = decode_guarded(tampered(rng), room, rng)
        told[result] = told.get(result, 0) + 1
    judge_cut(room[1])
    print(told)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
