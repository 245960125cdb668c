"""A set of containers is read as the one container of the same samples would be."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ffcv.types import ALLOC_TABLE_TYPE, HeaderType

from harl_fast.data.container.manifest import (
    containers_in,
    find_container,
    manifest_path,
    merge_manifests,
    names_path,
    read_manifest,
    sample_name,
    sums_path,
    write_manifest,
)
from harl_fast.data.loader import EvalLoader
from harl_fast.data.occupancy import occupancy
from harl_fast.data.order import chunk_length
from harl_fast.data.reader import OpenContainer, read_samples
from harl_fast.errors import DataError
from tests.betons import Item, plain_item, write_beton, write_checksums
from tests.data.support import COUNT, VIEWS, by_sample, loader
from tests.sets import rewrite_set, split_beton

SHARDS = 7
FIRST_OF_3 = 27
"""60 samples in 7 shards: four of 9, then three of 8."""


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_beton(tmp_path_factory.mktemp("one") / "train.beton", plain_item, count=COUNT)
    return write_checksums(path)


@pytest.fixture(scope="module")
def whole_set(beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_beton(beton, tmp_path_factory.mktemp("seven"), shards=SHARDS)


@pytest.fixture
def shards(whole_set: Path, tmp_path: Path) -> Path:
    """A copy to do damage to."""
    shutil.copytree(whole_set.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / whole_set.name


def shard(path: Path, number: int) -> Path:
    return path / f"{number:05d}-of-{SHARDS:05d}.beton"


def test_seven_shards_deliver_what_one_container_does(beton: Path, whole_set: Path) -> None:
    one, seven = loader(beton), loader(whole_set)
    for _ in range(2):
        orders: list[list[int]] = [[], []]
        rows = [
            by_sample(batch for batch in each if not order.extend(batch.ids.tolist()))
            for each, order in zip((one, seven), orders, strict=True)
        ]
        assert rows[0] == rows[1] and len(rows[0]) == COUNT
        assert orders[0] == orders[1] != sorted(orders[0])
    for rank in range(2):
        halves = [loader(p, rank=rank, world=2, batch_micro=6) for p in (beton, whole_set)]
        assert by_sample(halves[0]) == by_sample(halves[1])
    assert by_sample(EvalLoader(beton, size_px=32)) == by_sample(EvalLoader(whole_set, size_px=32))
    chosen = [59, 3, 31]
    found = by_sample(EvalLoader(whole_set, size_px=32, ids=chosen))
    assert list(found) == chosen and found == by_sample(EvalLoader(beton, size_px=32, ids=chosen))


def test_the_quasi_random_order_is_the_same(beton: Path, whole_set: Path) -> None:
    """Though files of containers are larger together than one: chunks follow from the samples."""
    loaders = [loader(path, order="quasi") for path in (beton, whole_set)]
    assert loaders[0].order == loaders[1].order
    assert loaders[0].manifest.beton_bytes < loaders[1].manifest.beton_bytes
    one = loaders[0]
    one.load_state_dict({**one.state_dict(), "order_version": 1})  # as it was before
    assert one.order.chunk == chunk_length(count=COUNT, total_bytes=one.manifest.beton_bytes)


def test_a_position_in_one_continues_in_the_other(beton: Path, whole_set: Path) -> None:
    for begun, resumed in ((beton, whole_set), (whole_set, beton)):
        first = loader(begun)
        passed = iter(first)
        for _ in range(3):
            next(passed)
        second = loader(resumed)
        second.load_state_dict(first.state_dict())
        assert second.step == 2
        reference = loader(begun)
        ids = [batch.ids.tolist() for batch in reference]
        assert [batch.ids.tolist() for batch in second] == ids[2:]


def test_names_samples_and_masks_are_those_of_one_container(beton: Path, whole_set: Path) -> None:
    assert [sample_name(whole_set, i) for i in range(COUNT)] == [
        f"sample{i}.jpg" for i in range(COUNT)
    ]
    ids = [0, 8, 9, FIRST_OF_3, 59]
    for one, other in zip(read_samples(beton, ids), read_samples(whole_set, ids), strict=True):
        assert (one.id, one.name, one.label) == (other.id, other.name, other.label)
        assert np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
    found = [occupancy(path, VIEWS, seed=1) for path in (beton, whole_set)]
    assert np.array_equal(found[0].coverage, found[1].coverage)
    assert np.array_equal(found[0].per_crop, found[1].per_crop)


def overwrite(path: Path, *samples: int) -> None:
    """Put other bytes into stored images, of one container or of a set."""
    container = OpenContainer(path)
    for sample in samples:
        with open(container.file_of(sample)[0], "r+b") as stream:
            stream.seek(int(container.stored.rows[sample]["image"]) + 200)
            stream.write(b"\xff\xd9" + bytes(400))


@pytest.mark.parametrize("check", ["checksum", "none"])
def test_damage_is_replaced_alike_and_named_by_its_shard(
    beton: Path, shards: Path, tmp_path: Path, check: str
) -> None:
    one = tmp_path / "single" / "train.beton"
    one.parent.mkdir()
    for place in (lambda p: p, manifest_path, names_path, sums_path):
        shutil.copy(place(beton), one.parent)
    damaged = (8, FIRST_OF_3 - 1, FIRST_OF_3, 59)  # the last of shards, a first, the very last
    for path in (one, shards):
        overwrite(path, *damaged)
    both = [loader(path, damaged="replace", check=check) for path in (one, shards)]
    assert by_sample(both[0]) == by_sample(both[1])
    assert both[0].damage.first == both[1].damage.first and both[1].damage.count == len(damaged)
    with pytest.raises(DataError) as caught:
        list(EvalLoader(shards, size_px=32, ids=[FIRST_OF_3], check=check))
    for word in (str(shard(shards, 3)), f"sample {FIRST_OF_3} ", f"sample{FIRST_OF_3}.jpg"):
        assert word in str(caught.value)


def cut(path: Path) -> None:
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size - 100)


def change_table(path: Path) -> None:
    with open(path, "r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"\x55")


def exchange(path: Path) -> None:
    """Put another container's whole files there."""
    other = path.with_name(path.name.replace("00002-of", "00001-of"))
    for place in (lambda p: p, manifest_path, names_path, sums_path):
        shutil.copy(place(other), place(path))


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "no manifest": lambda path: manifest_path(path).unlink(),
    "no sums": lambda path: sums_path(path).unlink(),
    "cut": cut,
    "changed": change_table,
    "another's": exchange,
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_shard_is_named_and_the_rest_can_be_used(
    beton: Path, shards: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    BROKEN[kind](shard(shards, 2))
    with pytest.raises(DataError) as caught:
        loader(shards)
    message = str(caught.value)
    assert "\n" not in message and "data.skip_broken" in message and "1 of 7 shards" in message
    assert shard(shards, 2).stem in message
    with caplog.at_level(logging.WARNING):
        rest = loader(shards, skip_broken=True, batch_global=10, batch_micro=10)
    assert shard(shards, 2).stem in caplog.text and "left out" in caplog.text
    assert rest.manifest.count == COUNT - 9 and len(rest.manifest.shards) == SHARDS - 1
    assert rest.manifest.beton_sha256 != read_manifest(shards).beton_sha256
    left = [i for i in range(COUNT) if i not in range(18, 27)]  # ids run through what remains
    evaluated = by_sample(EvalLoader(shards, size_px=32, skip_broken=True))
    whole = by_sample(EvalLoader(beton, size_px=32))
    assert [evaluated[i] for i in range(len(left))] == [whole[i] for i in left]


def test_several_broken_shards_are_counted_and_none_left_is_refused(shards: Path) -> None:
    for number in (5, 1):
        cut(shard(shards, number))
    with pytest.raises(DataError, match=r"2 of 7 shards .*00001-of-00007\.beton has"):
        loader(shards)
    for number in set(range(SHARDS)) - {1, 5}:
        shard(shards, number).unlink()
    with pytest.raises(DataError, match=r"7 of 7 shards .*00000-of-00007\.beton is missing"):
        loader(shards, skip_broken=True)


def test_a_shard_that_changes_while_it_is_read_is_named(shards: Path) -> None:
    one = EvalLoader(shards, size_px=32, batch=4)
    change_table(shard(shards, 4))
    with pytest.raises(DataError, match=r"00004-of-00007\.beton was written to"):
        list(one)


def test_masks_of_two_sizes_are_refused(beton: Path, shards: Path, tmp_path: Path) -> None:
    other = write_beton(tmp_path / "train.beton", plain_item, count=9, mask_size=64)
    known = read_manifest(write_checksums(other))
    smaller = dataclasses.replace(known, mask={**known.mask, "size": 32})
    said = (
        r"shard b has masks of 32 px, the first one has 64 px.*Convert them with the same --mask-"
    )
    with pytest.raises(DataError, match=said):
        merge_manifests([("a", known), ("b", smaller)], [])


def test_a_shard_of_other_masks_than_its_manifest_says_is_named_with_the_remedy(
    shards: Path, tmp_path: Path
) -> None:
    size, place = read_manifest(shards).mask["size"], shard(shards, 1)
    (tmp_path / "x").mkdir()

    def small(index: int) -> Item:
        image, mask, label = plain_item(index)
        return image, mask[::2, ::2], label

    other = write_beton(tmp_path / "x" / "train.beton", small, count=9, mask_size=size // 2)
    known = read_manifest(write_checksums(other))
    place.write_bytes(other.read_bytes())
    write_manifest(place, dataclasses.replace(known, mask={**known.mask, "size": size}))
    rewrite_set(shards)
    said = (
        rf"00001-of-00007\.beton has masks of {size // 2} px, 00000-of.*Write the container again"
    )
    with pytest.raises(DataError, match=said):
        loader(shards)


def test_merged_manifests_add_up(whole_set: Path, beton: Path) -> None:
    one, merged = read_manifest(beton), read_manifest(whole_set)
    assert merged.count == one.count and merged.class_counts == one.class_counts
    assert merged.beton_bytes == sum(p.stat().st_size for p in whole_set.glob("*.beton"))
    first = dataclasses.replace(
        one,
        count=10,
        mask={"size": 64, "method": "full", "coverage_mean": 0.5, "fallbacks": 1},
        store={"kind": "jpg", "pixels": 7, "modes": {"jpg": {"count": 10, "bytes": 100}}},
        skipped=1,
    )
    second = dataclasses.replace(
        first,
        count=30,
        classes=[*one.classes, "new"],
        class_counts=[1, 1, 1, 1, 26],
        mask={"size": 64, "method": "circle", "coverage_mean": 0.1, "fallbacks": 2},
        store={
            "kind": "jpg",
            "pixels": 3,
            "modes": {"jpg": {"count": 29, "bytes": 5}, "raw": {"count": 1, "bytes": 2}},
            "reencoded": {"too large": 4},
        },
        source="later",
    )
    first = dataclasses.replace(first, provider="torchvision")
    both = merge_manifests([("a.beton", first), ("b.beton", second)], [{"first": 0}])
    assert both.count == 40 and both.skipped == 2 and both.source == "test, later"
    assert both.provider == "" and merge_manifests([("a", first)], []).provider == "torchvision"
    assert both.classes == second.classes
    assert both.class_counts == [*(count + 1 for count in one.class_counts), 26]
    assert both.mask["coverage_mean"] == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    assert both.mask["fallbacks"] == 3 and both.mask["method"] == ["full", "circle"]
    modes = {"jpg": {"count": 39, "bytes": 105}, "raw": {"count": 1, "bytes": 2}}
    assert both.store == {
        "kind": "jpg", "pixels": 10, "modes": modes, "reencoded": {"too large": 4}
    }  # fmt: skip
    assert [(s.file, s.count) for s in both.shards] == [("a.beton", 10), ("b.beton", 30)]
    renamed = dataclasses.replace(second, classes=["other", *second.classes[1:]])
    with pytest.raises(DataError, match=r"shard \w has other classes"):
        merge_manifests([("a", first), ("b", renamed)], [])


def test_a_set_and_a_container_are_told_apart(beton: Path, shards: Path, tmp_path: Path) -> None:
    assert find_container(tmp_path, "train") == shards
    assert find_container(beton.parent, "train") == beton
    (tmp_path / "val" / "class").mkdir(parents=True)  # a folder of images
    assert containers_in(tmp_path, "val") == []
    with pytest.raises(DataError, match=r"neither val\.beton nor a set val/.*make beton"):
        find_container(tmp_path, "val")
    shutil.copy(beton, tmp_path)
    with pytest.raises(DataError, match=r"both there: remove"):
        find_container(tmp_path, "train")
    with pytest.raises(DataError, match=r"train\.json describes a set of containers"):
        read_manifest(tmp_path / "train.beton")
    write_manifest(shards, read_manifest(beton))
    with pytest.raises(DataError, match=r"train\.json describes a single container"):
        loader(shards)
    manifest_path(shards).unlink()
    with pytest.raises(DataError, match=r"without a set's manifest.*00000-of-00007\.beton"):
        loader(shards)


def test_a_table_in_another_order_gives_the_same_samples(beton: Path, tmp_path: Path) -> None:
    """FFCV's own writer lists what its processes wrote, one after another."""
    for place in (lambda p: p, manifest_path, names_path, sums_path):
        shutil.copy(place(beton), tmp_path)
    path = tmp_path / "train.beton"
    start = int(np.fromfile(path, HeaderType, count=1)[0]["alloc_table_ptr"])
    table = np.fromfile(path, ALLOC_TABLE_TYPE, offset=start)
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(np.random.default_rng(0).permutation(table).tobytes())
    write_manifest(path, dataclasses.replace(read_manifest(beton), tables_sha256=""))
    assert by_sample(loader(path)) == by_sample(loader(beton))


def test_shards_without_sums_are_read_unchecked_and_said(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shard(shards, 6)
    write_manifest(path, dataclasses.replace(read_manifest(path), sums_sha256=""))
    rewrite_set(shards)
    overwrite(shards, 55)  # in the last shard: its JPEG is damaged all the same
    with caplog.at_level(logging.WARNING):
        one = EvalLoader(shards, size_px=32, damaged="replace")
    assert f"{path} has no checksums" in caplog.text
    assert len(by_sample(one)) == COUNT - 1 and [d.id for d in one.damage.first] == [55]
    assert "JPEG" in one.damage.first[0].reason
