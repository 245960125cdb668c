"""Input without limits is refused: pixels, bytes, folders, and files that are none."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.errors import DataError
from harl_fast.files import UnusualFileError, open_regular, sha256_file
from preprocess.images import decode
from preprocess.images.decode import PIXEL_LIMITS, Frame, decode_image, read_mask
from preprocess.images.listing import DEPTH, list_images
from preprocess.images.reading import UnusableImageError
from preprocess.masks.maskfile import Fingerprint, read_made
from preprocess.passthrough import NotTakenError, take_jpeg
from tests.preprocess.support import photo, save

PEAK = """
import sys
from pathlib import Path
from preprocess.images.decode import decode_image, shrink

def state(key):
    with open("/proc/self/status") as stream:
        return next(1024 * int(line.split()[1]) for line in stream if line.startswith(key))

decode_image(Path(sys.argv[1]), side_px=64)  # what the decoder itself takes is there
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")
before = state("VmRSS")
shrink(decode_image(Path(sys.argv[2]), side_px=64).rgb, side_px=64)
print(state("VmHWM") - before)
"""
SIDE = 4000
BYTES_PER_PIXEL = 12
"""Pillow's 4 and the 3 of RGB twice, and 2 for strips and the decoder's own buffers."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory")
@pytest.mark.parametrize(
    "mode",
    ["RGBA", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("P", "RGB"))],
)
def test_a_pixel_takes_a_bounded_memory_in_any_mode(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (SIDE, SIDE), 7)
    if mode == "P":
        image.putpalette(range(3 * 8))
    options = {"transparency": 3} if mode == "P" else {}
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "large.png", compress_level=1, exif=turned, **options)
    image.resize((8, 8)).save(tmp_path / "small.png", exif=turned, **options)
    command = [sys.executable, "-c", PEAK, tmp_path / "small.png", tmp_path / "large.png"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    assert int(done.stdout) < BYTES_PER_PIXEL * SIDE**2


def test_formats_whose_decoder_takes_more_have_a_lower_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PIXEL_LIMITS, "WEBP", 48 * 64 - 1)
    decode_image(save(photo(0), tmp_path / "x.png"), side_px=64)
    with pytest.raises(UnusableImageError, match="64 x 48 pixels, more than 3,071: scale it down"):
        decode_image(save(photo(0), tmp_path / "x.webp"), side_px=64)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_pipe, "a named pipe"),
        (make_socket, "a socket"),
        (link_device, "a device"),
        (Path.mkdir, "a folder"),
    ],
)
def test_only_regular_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("x.jpg")
    make(path)  # type: ignore[operator]
    with pytest.raises(UnusableImageError, match=f"{name}, not a regular file"):
        decode_image(path, side_px=64)
    with pytest.raises(UnusableImageError, match=f"{name}, not a regular file"):
        read_mask(path, Frame(1, (4, 4)))
    with pytest.raises(UnusableImageError, match=f"{name}, not a regular file"):
        read_made(path)
    with pytest.raises(NotTakenError):
        take_jpeg(path, side_px=64)
    for read in (Fingerprint.of, sha256_file, open_regular):
        with pytest.raises(UnusualFileError, match=name):
            read(path)  # type: ignore[operator]
    assert not Fingerprint(path.stat().st_size, 0, 0).fits(path)


@pytest.mark.timeout(20)
def test_a_pipe_without_a_suffix_is_listed_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert list_images(tmp_path).strange == {"pipe": "a named pipe, not a regular file"}


def test_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(photo(0), tmp_path / "x.png")
    monkeypatch.setattr(decode, "FILE_LIMIT", path.stat().st_size - 1)
    with pytest.raises(UnusableImageError, match=r"bytes, more than [\d,]+"):
        decode_image(path, side_px=64)


def test_folders_end_somewhere(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (DEPTH + 1))
    deep.mkdir(parents=True)
    save(np.zeros((4, 4, 3), np.uint8), deep / "x.png")
    with pytest.raises(DataError, match=f"more than {DEPTH} folders deep"):
        list_images(tmp_path)
    assert list_images(tmp_path / "d").images == ["d/" * DEPTH + "x.png"]


def test_a_folder_that_goes_away_ends_a_conversion(tmp_path: Path) -> None:
    """As an unmounted disk does: else all of its images would be left out, one by one."""
    (tmp_path / "a").mkdir()
    path = save(photo(0), tmp_path / "a/x.png")
    other = save(photo(1), tmp_path / "a/y.png")
    path.unlink()
    with pytest.raises(UnusableImageError, match="FileNotFoundError"):
        decode_image(path, side_px=64)
    other.unlink()
    for _ in ("empty", "gone"):
        with pytest.raises(OSError, match=r"gone with all of its images: '.*/a'"):
            decode_image(path, side_px=64)
        if path.parent.exists():
            path.parent.rmdir()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_what_the_system_lacks_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = save(photo(0), tmp_path / "x.png")

    def lacking(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("preprocess.images.decode.open_regular", lacking)
    with pytest.raises(OSError, match=os.strerror(number)):
        decode_image(path, side_px=64)
