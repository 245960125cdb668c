"""Images inside other files are opened within the limits of files, and damage to them is said."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.files import UnusualFileError
from preprocess.images import decode
from preprocess.images.decode import UnusableImageError, decode_image, open_file
from preprocess.images.members import DEFLATED, FileRange, Members, Page, ZipMember
from preprocess.passthrough import NotTakenError, take_jpeg
from preprocess.prints import fingerprint
from preprocess.sources.entries import tar_entries, zip_entries
from tests.preprocess.packed import write_tar
from tests.preprocess.support import photo, save

PNG = 64 * 1024 * b"x"


def in_zip(path: Path, data: bytes, *, method: int = zipfile.ZIP_DEFLATED) -> ZipMember:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x", data)
    (entry,) = zip_entries(path)
    return ZipMember(path, *entry.place)


def in_tar(path: Path, data: bytes) -> FileRange:
    (entry,) = tar_entries(write_tar(path, {"x": data}))
    return FileRange(path, *entry.place)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_members_are_the_bytes_that_were_packed(method: int, tmp_path: Path) -> None:
    data = np.random.default_rng(3).bytes(70_000)
    for member in (in_zip(tmp_path / "x.zip", data, method=method), in_tar(tmp_path / "x", data)):
        again = pickle.loads(pickle.dumps(member))  # as a worker gets it
        with open_file(again) as stream:
            assert stream.read() == data
            assert stream.seek(5) == 5 and stream.read(3) == data[5:8]
        assert again.head(18) == data[:18] and again.head(10**6) == data
        assert again.size == len(data) and str(tmp_path) in again.name


def test_members_larger_than_files_may_be_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "FILE_LIMIT", 1000)
    for member in (in_zip(tmp_path / "x.zip", bytes(1001)), in_tar(tmp_path / "x", bytes(1001))):
        with pytest.raises(UnusableImageError, match=r"1,001 bytes, more than 1,000"):
            decode_image(member, side_px=64)


def test_a_bomb_is_not_unpacked_further_than_it_states(tmp_path: Path) -> None:
    """A member of 10 MB that says it has 100 bytes, or the other way round."""
    honest = in_zip(tmp_path / "x.zip", bytes(10_000_000))
    assert honest.packed < 10_000
    liar = honest._replace(size=100, crc=zlib.crc32(bytes(100)))
    with pytest.raises(UnusualFileError, match="do not match the archive's checksum"):
        liar.open(1 << 20)
    with pytest.raises(UnusualFileError, match="do not match"):
        in_zip(tmp_path / "y.zip", bytes(100))._replace(size=1 << 29).open(1 << 30)


def test_damage_to_a_member_is_said(tmp_path: Path) -> None:
    jpeg = save(photo(1), tmp_path / "x.jpg").read_bytes()
    member = in_zip(tmp_path / "x.zip", jpeg)
    data = bytearray(member.path.read_bytes())
    data[member.offset + 60] ^= 0xFF
    member.path.write_bytes(data)
    with pytest.raises(UnusableImageError, match=r"^damaged: "):
        decode_image(member, side_px=64)
    with pytest.raises(NotTakenError, match="unreadable"):
        take_jpeg(member, side_px=64)
    with pytest.raises(UnusualFileError, match="no member where its directory says"):
        member._replace(offset=1).open(1 << 20)
    range_ = in_tar(tmp_path / "x.tar", jpeg)
    range_.path.write_bytes(range_.path.read_bytes()[: range_.offset + 100])
    with pytest.raises(UnusableImageError, match=r"damaged: x\.tar ends before it"):
        decode_image(range_, side_px=64)


def test_a_jpeg_in_an_archive_passes_through_as_it_is(tmp_path: Path) -> None:
    jpeg = save(photo(1), tmp_path / "x.jpg", quality=90).read_bytes()
    for member in (in_zip(tmp_path / "x.zip", jpeg), in_tar(tmp_path / "x.tar", jpeg)):
        assert take_jpeg(member, side_px=512).data == jpeg


def test_members_are_kept_as_arrays(tmp_path: Path) -> None:
    numbers = np.array([(1, 5, 6), (0, 7, 8), (1, 9, 10)])
    all_of_them = Members(FileRange, [(tmp_path / "a",), (tmp_path / "b",)], numbers)
    expected = [FileRange(tmp_path / name, *two) for name, *two in (("b", 5, 6), ("a", 7, 8))]
    assert list(all_of_them)[:2] == expected and len(all_of_them) == 3
    assert list(all_of_them[:2]) == expected
    assert list(all_of_them.take([1, 0])) == expected[::-1]
    assert all_of_them[-1] == FileRange(tmp_path / "b", 9, 10)


def test_zip_members_know_their_place_behind_other_data(tmp_path: Path) -> None:
    """Archives that unpack themselves begin with a program."""
    path = tmp_path / "x.zip"
    data = in_zip(path, PNG).path.read_bytes()
    path.write_bytes(bytes(1000) + data)
    (entry,) = zip_entries(path)
    assert ZipMember(path, *entry.place).open(1 << 20).read() == PNG
    assert entry.place[-1] == DEFLATED and struct.calcsize("<4s22xHH") == 30


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_a_fingerprint_is_of_the_size_and_three_parts_of_the_whole_file(
    tmp_path: Path, suffix: str
) -> None:
    path = save(photo(1, height=90, width=120), tmp_path / f"x.{suffix}")
    with open(path, "ab") as stream:
        stream.write(bytes(range(256)) * 40)  # behind the image's end
    data = path.read_bytes()
    middle = (len(data) - 4096) // 2
    text = str(len(data)).encode() + data[:4096] + data[middle : middle + 4096] + data[-4096:]
    known = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    images = path, Page(path, 0), in_zip(tmp_path / "x.zip", data), in_tar(tmp_path / "x.tar", data)
    for image in images:
        assert fingerprint(image) == known
        assert decode_image(image, side_px=512).source_print == known
    np.testing.assert_array_equal(
        decode_image(path, side_px=512).rgb, np.asarray(Image.open(path).convert("RGB"))
    )
