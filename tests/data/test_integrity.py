"""Containers whose header or tables are damaged are refused when they are opened."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ffcv.types import ALLOC_TABLE_TYPE, HeaderType

from harl_fast.data.container.index import _filled, _opened, check_container
from harl_fast.data.container.integrity import METADATA_START, METADATA_TYPE, tables_sha256
from harl_fast.data.container.manifest import (
    read_manifest,
    read_sums,
    sums_path,
    write_sums,
)
from harl_fast.errors import DataError
from tests.betons import plain_item, write_beton

COUNT = 9


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("plain") / "train.beton", plain_item, count=COUNT)


@pytest.fixture
def copied(beton: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(beton, tmp_path / "train.beton"))


def table_start(path: Path) -> int:
    return int(np.fromfile(path, HeaderType, count=1)[0]["alloc_table_ptr"])


def refused(path: Path, beton: Path, **changes: object) -> str:
    """Return why a container is refused under the manifest of the sound one."""
    with pytest.raises(DataError) as caught:
        check_container(path, dataclasses.replace(read_manifest(beton), **changes))
    assert str(path) in str(caught.value) and "make beton" in str(caught.value)
    return str(caught.value)


def test_any_flipped_bit_of_header_metadata_or_table_is_found(beton: Path, copied: Path) -> None:
    known = tables_sha256(beton)
    check_container(copied, dataclasses.replace(read_manifest(beton), tables_sha256=known))
    sound = beton.read_bytes()
    metadata_end = METADATA_START + COUNT * METADATA_TYPE.itemsize
    where = [*range(metadata_end), *range(table_start(beton), len(sound))]
    rng = np.random.default_rng(0)
    chosen = [*range(HeaderType.itemsize), *rng.choice(where, 200).tolist()]
    for place in chosen:
        changed = bytearray(sound)
        changed[place] ^= 1 << int(rng.integers(8))
        copied.write_bytes(changed)
        refused(copied, beton, tables_sha256=known)


def test_a_table_in_another_order_gives_the_same_sizes(beton: Path, copied: Path) -> None:
    """As ffcv's own writer leaves it, whose processes add to it as they finish."""
    manifest, start = read_manifest(beton), table_start(beton)
    table = np.fromfile(beton, ALLOC_TABLE_TYPE, offset=start)
    np.random.default_rng(1).shuffle(table)
    copied.write_bytes(beton.read_bytes()[:start] + table.tobytes())
    manifest = dataclasses.replace(manifest, tables_sha256="")
    expected, got = (
        _filled(manifest, [_opened(path, manifest)], sums=False)[0] for path in (beton, copied)
    )
    assert len(np.unique(expected.rows["size"])) > 1
    for name in ("image", "size", "mask"):
        np.testing.assert_array_equal(got.rows[name], expected.rows[name])


def test_bytes_of_samples_are_no_part_of_the_checksum(beton: Path, copied: Path) -> None:
    image = int(np.fromfile(beton, ALLOC_TABLE_TYPE, offset=table_start(beton))[0]["ptr"])
    with open(copied, "r+b") as stream:
        stream.seek(image + 50)
        stream.write(b"\xff\xff")
    assert copied.read_bytes() != beton.read_bytes()
    assert tables_sha256(copied) == tables_sha256(beton)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ptr", 2**64 - 8, "outside the data"),
        ("ptr", 100, "outside the data"),
        ("size", 2**64 - 8, "outside the data"),
        ("size", 0, "outside the data"),
        ("size", 10**6, "overlap"),
    ],
)
def test_wild_addresses_are_refused(
    beton: Path, copied: Path, field: str, value: int, words: str
) -> None:
    start = table_start(beton)
    table = np.fromfile(beton, ALLOC_TABLE_TYPE, offset=start)
    table[3][field] = value
    with open(copied, "r+b") as stream:
        stream.seek(start)
        stream.write(table.tobytes())
    assert words in refused(copied, beton)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("f0", "data_ptr"), 12345, "unknown address in sample 4"),
        (("f1", "data_ptr"), 12345, "unknown address in sample 4"),
        (("f0", "mode"), 7, "image mode in sample 4"),
        (("f0", "mode"), 1, "another size than its bytes in sample 4"),
        (("f0", "mode"), 2, "another size than its bytes in sample 4"),
        (("f0", "width"), 0, "without area in sample 4"),
        (("f2",), 4, "label in sample 4"),
        (("f2",), -1, "label in sample 4"),
    ],
)
def test_impossible_metadata_are_refused(
    beton: Path, copied: Path, place: tuple[str, ...], value: int, words: str
) -> None:
    metadata = np.fromfile(beton, METADATA_TYPE, count=COUNT, offset=METADATA_START)
    column = metadata
    for name in place:
        column = column[name]
    column[4] = value
    with open(copied, "r+b") as stream:
        stream.seek(METADATA_START)
        stream.write(metadata.tobytes())
    assert words in refused(copied, beton)


def test_a_size_that_would_take_all_memory_is_refused(beton: Path, copied: Path) -> None:
    metadata = np.fromfile(beton, METADATA_TYPE, count=COUNT, offset=METADATA_START)
    metadata["f0"]["width"][4] = metadata["f0"]["height"][4] = 65_500
    with open(copied, "r+b") as stream:
        stream.seek(METADATA_START)
        stream.write(metadata.tobytes())
    assert "more than 200,000,000 pixels in sample 4" in refused(copied, beton)


def test_a_wild_sample_count_is_refused_at_once(beton: Path, copied: Path) -> None:
    """FFCV hangs on it, whether the manifest agrees or not."""
    header = np.fromfile(beton, HeaderType, count=1)
    header["num_samples"] = 2**40
    with open(copied, "r+b") as stream:
        stream.write(header.tobytes())
    assert "1099511627776 samples" in refused(copied, beton)
    assert "no room for the metadata" in refused(copied, beton, count=2**40)


def test_checksums_of_samples_belong_to_their_container(beton: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    manifest = read_manifest(beton)
    assert read_sums(path, manifest) is None
    known = write_sums(path, [1, 2**32 - 1, 3, 4])
    manifest = dataclasses.replace(manifest, sums_sha256=known, count=2)
    sums = read_sums(path, manifest)
    assert sums is not None and sums.tolist() == [[1, 2**32 - 1], [3, 4]]
    write_sums(path, [1, 2, 3, 4])
    with pytest.raises(DataError, match="another run"):
        read_sums(path, manifest)
    sums_path(path).unlink()
    with pytest.raises(DataError, match="is missing"):
        read_sums(path, manifest)


@pytest.fixture
def restless() -> Iterator[None]:
    """Collections run Python code, as libraries have them do, and threads change often."""

    def callback(*_: object) -> None:
        [str(number) for number in range(50)]

    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(callback)
    gc.set_threshold(20)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*before)
    gc.callbacks.remove(callback)


@pytest.mark.usefixtures("restless")
def test_threads_read_checksums_side_by_side(beton: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    known = write_sums(path, [1, 2])
    manifest = dataclasses.replace(read_manifest(beton), sums_sha256=known, count=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_sums(path, manifest), range(600)))
    assert all(sums is not None and sums.tolist() == [[1, 2]] for sums in found)
