"""The checksum of stored bytes: XXH64 as published, and no changed byte handed out unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import zlib
from pathlib import Path

import numpy as np
import pytest

from harl_fast.config import DataConfig
from harl_fast.data import damage
from harl_fast.data.container.checksum import stored_sum, xxh64
from harl_fast.data.container.fields import MODE_JPG, MODE_RAW, MODE_YUV420, open_reader
from harl_fast.data.container.manifest import read_manifest, sums_path, write_manifest, write_sums
from harl_fast.data.loader import EvalLoader
from harl_fast.errors import ConfigError, DataError
from harl_fast.files import sha256_file
from preprocess.convert import Sample
from preprocess.encode import encode
from preprocess.writer import container_writer
from tests.betons import describe_beton, plain_item, smooth_noise, write_beton, write_checksums
from tests.data.support import COUNT, by_sample, copied, loader

PRIMES = (
    11400714785074694791,
    14029467366897019727,
    1609587929392839161,
    9650029242287828579,
    2870177450012600261,
)
WORD = 2**64 - 1


def rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & WORD


def turn(lane: int, word: int) -> int:
    return rotated((lane + word * PRIMES[1]) & WORD, 31) * PRIMES[0] & WORD


def specified(data: bytes) -> int:
    """XXH64 with seed 0, step by step as the specification has it, in Python's whole numbers."""
    one, two, three, four, five = PRIMES
    lanes = [(one + two) & WORD, two, 0, -one & WORD]
    at = 0
    while len(data) - at >= 32:
        for lane in range(4):
            place = at + 8 * lane
            word = int.from_bytes(data[place : place + 8], "little")
            lanes[lane] = turn(lanes[lane], word)
        at += 32
    value = five
    if at:
        value = sum(rotated(lanes[k], bits) for k, bits in enumerate((1, 7, 12, 18))) & WORD
        for lane in lanes:
            value = ((value ^ turn(0, lane)) * one + four) & WORD
    value = value + len(data) & WORD
    for width, bits in ((8, 27), (4, 23), (1, 11)):
        while len(data) - at >= width:
            word = int.from_bytes(data[at : at + width], "little")
            if width == 8:
                value = (rotated(value ^ turn(0, word), bits) * one + four) & WORD
            elif width == 4:
                value = (rotated(value ^ word * one & WORD, bits) * two + three) & WORD
            else:
                value = rotated(value ^ word * five & WORD, bits) * one & WORD
            at += width
    for shift, factor in ((33, two), (29, three)):
        value = (value ^ value >> shift) * factor & WORD
    return value ^ value >> 32


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_published_values_are_met(text: bytes, known: int) -> None:
    assert stored_sum(text) == specified(text) == known


def test_every_length_at_every_alignment_is_summed_as_specified() -> None:
    data = np.random.default_rng(0).integers(0, 256, 400, np.uint8)
    for length in range(150):
        for start in range(8):
            part = data[start : start + length]
            assert int(xxh64(part)) == specified(part.tobytes())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sample 0 is a JPEG with restart markers, 1 raw, 2 yuv420; all with checksums."""
    path, samples = tmp_path_factory.mktemp("mixed") / "train.beton", []
    for index, mode in enumerate((MODE_JPG, MODE_RAW, MODE_YUV420)):
        image = np.frombuffer(encode(smooth_noise(index, 64, 80), mode, quality=90), np.uint8)
        mask = np.random.default_rng(index).integers(0, 256, 512, np.uint8).tobytes()
        sample = Sample(f"{index}.jpg", 0, mode, image, 64, 80, mask)
        samples.append(sample._replace(image_bytes=len(image)))
    writer = container_writer(path, max_resolution=80, mask_size=64, yuv420=True)
    writer.write(samples, capacity=3)
    return write_checksums(describe_beton(path, [0, 0, 0]))


def places(data: bytes) -> list[int]:
    """Return one byte of every kind of place in a stored image: ends, each marker, what follows."""
    ends = [0, 1, len(data) // 2, len(data) - 2, len(data) - 1]
    marks = [at + k for at in range(len(data) - 9) if data[at] == 0xFF for k in (0, 1, 2, 4, 9)]
    return sorted({*ends, *marks[:150], *range(200, len(data), len(data) // 20)})


@pytest.mark.parametrize("sample", [0, 1, 2])
def test_no_flipped_byte_is_handed_out(mixed: Path, tmp_path: Path, sample: int) -> None:
    path = copied(mixed, tmp_path)
    reader = open_reader(path)
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"], strict=True))
    whole, silent, flips = path.read_bytes(), 0, 0
    for column in ("f0", "f1"):
        start = int(reader.metadata[column]["data_ptr"][sample])
        for place in places(whole[start : start + int(sizes[start])]):
            with open(path, "r+b") as stream:
                stream.seek(start + place)
                stream.write(bytes([whole[start + place] ^ 0x10]))
            with pytest.raises(DataError) as caught:
                list(EvalLoader(path, size_px=32, ids=[sample]))
            assert f"sample {sample}" in str(caught.value)
            assert "stored bytes do not match their checksum" in str(caught.value)
            flips += 1
            with contextlib.suppress(DataError):  # decoding alone may notice it
                silent += len(list(EvalLoader(path, size_px=32, ids=[sample], check="none")))
            path.write_bytes(whole)
    assert flips > 40 and silent > flips / 5, "too few for decoding alone to miss"


def test_a_sample_of_other_bytes_is_replaced_by_the_next(tmp_path: Path) -> None:
    path = write_checksums(write_beton(tmp_path / "train.beton", plain_item, count=COUNT))
    expected = by_sample(loader(path))
    start = int(open_reader(path).metadata["f1"]["data_ptr"][17])
    with open(path, "r+b") as stream:
        stream.seek(start + 3)
        stream.write(b"\x5a")
    with pytest.raises(DataError, match=r"sample 17 \(sample17.jpg\): its stored bytes do not"):
        list(loader(path))
    one = loader(path, damaged="replace")
    assert by_sample(one) == {key: row for key, row in expected.items() if key != 17}
    assert [item.id for item in one.damage.first] == [17]
    assert by_sample(loader(path, check="none")).keys() == expected.keys()


def test_older_checksums_open_unchecked_and_it_is_said_once(
    mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied(mixed, tmp_path)
    sums = np.array([[zlib.crc32(b"a"), zlib.crc32(b"b")]] * 3, "<u4")
    np.save(sums_path(path), sums)
    manifest = read_manifest(path)
    for known, words in ((sha256_file(sums_path(path)), "only older"), ("", "no checksums")):
        write_manifest(path, dataclasses.replace(manifest, sums_sha256=known))
        damage.warn_unchecked.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert len(list(EvalLoader(path, size_px=32))) == 1
            assert len(list(EvalLoader(path, size_px=32, check="none"))) == 1
        (told,) = (record.getMessage() for record in caplog.records)
        assert words in told and str(path) in told and "preprocess.verify --deep" in told


def zipped(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_checksums_that_are_missing_or_no_checksums_are_refused(
    mixed: Path, tmp_path: Path
) -> None:
    path = copied(mixed, tmp_path)
    manifest = read_manifest(path)
    write_sums(path, [0] * 8)  # of four samples
    write_manifest(path, dataclasses.replace(manifest, sums_sha256=sha256_file(sums_path(path))))
    with pytest.raises(DataError, match=r"shape \(4, 2\)"):
        EvalLoader(path, size_px=32)
    for content in (path.read_bytes(), b"", b"\x93NUMPY", zipped(sums=np.zeros((3, 2), "<u8"))):
        sums_path(path).write_bytes(content)
        known = sha256_file(sums_path(path))
        write_manifest(path, dataclasses.replace(manifest, sums_sha256=known))
        with pytest.raises(DataError, match="holds no checksums"):
            EvalLoader(path, size_px=32)
    sums_path(path).unlink()
    with pytest.raises(DataError, match=r"sums\.npy is missing"):
        EvalLoader(path, size_px=32)
    assert len(EvalLoader(path, size_px=32, check="none")) == 3
    with pytest.raises(ConfigError, match=r"check: 'crc'; use 'checksum' or 'none'"):
        EvalLoader(path, size_px=32, check="crc")


def test_samples_are_checked_unless_one_says_otherwise() -> None:
    assert DataConfig().check == "checksum"
