"""Images are added to a set: old ids stay, new shards follow, and nothing is there twice."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from harl_fast.data.container.manifest import find_container, read_manifest, write_manifest
from harl_fast.data.reader import read_samples
from harl_fast.errors import DataError
from preprocess import beton
from preprocess.verify import main as verify_main
from tests.preprocess.support import contents, image_folder, photo, save


def run(out: Path, *options: str) -> None:
    fixed = ["--out", str(out), "--mask-size", "16", "--workers", "1", "--mask-method", "full"]
    assert beton.main([*fixed, *options]) == 0


def names(out: Path, split: str) -> list[str]:
    path = find_container(out, split)
    return [sample.name for sample in read_samples(path, range(read_manifest(path).count))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "photos", classes=2, train=3, val=2)


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    run(tmp_path / "out", "--data", str(data))
    return tmp_path / "out"


def grow(root: Path, kind: str, count: int, *, split: str = "train", start: int = 100) -> None:
    for index in range(start, start + count):
        save(photo(index), root / split / kind / f"{index}.jpg", quality=95)


def test_images_of_one_class_are_added(out: Path, tmp_path: Path) -> None:
    before, more = names(out, "train"), tmp_path / "more"
    grow(more, "class1", 2)
    run(out, "--add", str(more), "--val", "0")
    assert names(out, "train") == [*before, "train/class1/100.jpg", "train/class1/101.jpg"]
    assert [sample.label for sample in read_samples(out / "train", [len(before)])] == [1]
    listed = tmp_path / "list.csv"
    save(photo(7), tmp_path / "7.jpg")
    listed.write_text("path,label\n7.jpg,class0\n")
    run(out, "--add", str(listed), "--val", "0")
    assert [sample.label for sample in read_samples(out / "train", [len(before) + 2])] == [0]


def test_one_container_becomes_the_first_shard_and_ids_stay(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same folder again, with more in it."""
    before = {split: names(out, split) for split in ("train", "val")}
    bytes_before = (out / "train.beton").read_bytes()
    grow(data, "class0", 5)
    run(out, "--add", str(data), "--shard-size", "3")
    said = capsys.readouterr().out
    assert "train: 6 images are there already: passed over" in said and "WARNING" not in said
    added = [f"train/class0/{index}.jpg" for index in range(100, 105)]
    assert names(out, "train") == before["train"] + added
    assert names(out, "val") == before["val"] and (out / "val.beton").exists()
    manifest = read_manifest(out / "train")
    assert [(shard.file, shard.count) for shard in manifest.shards] == [
        ("00000-of-00003.beton", 6),
        ("00001-of-00003.beton", 3),
        ("00002-of-00003.beton", 2),
    ]
    assert (out / "train" / "00000-of-00003.beton").read_bytes() == bytes_before
    assert not (out / "train.beton").exists() and not list(out.glob(".*"))
    events = [(event["first"], event["count"], event["source"]) for event in manifest.history]
    assert events == [(0, 6, "photos"), (6, 5, "photos")]
    assert manifest.class_counts == [8, 3]
    assert verify_main([str(path) for path in sorted((out / "train").glob("*.beton"))]) == 0


def test_shards_follow_those_of_a_set_and_again(data: Path, out: Path, tmp_path: Path) -> None:
    run(tmp_path / "set", "--data", str(data), "--shard-size", "4")
    target, grown = tmp_path / "set", names(tmp_path / "set", "train")
    for turn in (1, 2):
        grow(data, "class1", 2, start=100 * turn)
        grow(data, "class0", 1, start=100 * turn, split="val")
        run(target, "--add", str(data))
        grown += [f"train/class1/{100 * turn + index}.jpg" for index in range(2)]
        assert names(target, "train") == grown
    manifest = read_manifest(target / "train")
    assert [shard.file for shard in manifest.shards] == [
        "00000-of-00002.beton",
        "00001-of-00002.beton",
        "00002-of-00003.beton",
        "00003-of-00004.beton",
    ]
    assert [event["first"] for event in manifest.history] == [0, 6, 8]
    assert names(target, "val")[-2:] == ["val/class0/100.jpg", "val/class0/200.jpg"]
    assert json.loads((target / "train.report.json").read_text())["skipped"] == []


def test_nothing_new_changes_nothing(
    data: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(out, "--add", str(data))
    assert "nothing to add: all images are in " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_names_of_another_sources_images_are_refused(out: Path, tmp_path: Path) -> None:
    other = image_folder(tmp_path / "others", classes=2, train=4, val=2)
    for path in other.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"others")
    before = contents(out)
    with pytest.raises(
        DataError,
        match=r"6 train images of others have names .*contents: .* edited since; put others",
    ):
        run(out, "--add", str(other))
    assert contents(out) == before
    for split in ("train", "val"):  # as the message says
        for kind in ("class0", "class1"):
            folder = other / split / kind
            inside = folder / "others"
            files = sorted(folder.iterdir())
            inside.mkdir()
            for path in files:
                path.rename(inside / path.name)
    run(out, "--add", str(other))
    assert names(out, "train")[6] == "train/class0/others/0.jpg"
    manifest = read_manifest(out / "train")
    assert (manifest.count, manifest.source) == (14, "photos, others")


def altered(path: Path, position: int) -> None:
    """Change one byte of a file and keep its size."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_the_content_tells_known_images_not_the_folders_name(
    data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the folder under any name is known; another year's folder of its name is not."""
    before = contents(out)
    copy = tmp_path / "backup" / "renamed"
    shutil.copytree(data, copy)
    run(out, "--add", str(copy))
    assert "nothing to add" in capsys.readouterr().out
    twin = tmp_path / "2025" / "photos"
    shutil.copytree(data, twin)
    altered(twin / "train" / "class1" / "2.jpg", -1)
    with pytest.raises(
        DataError,
        match=r"1 train images of photos .*\(train/class1/2.jpg, \.\.\.\), and other cont",
    ):
        run(out, "--add", str(twin))
    assert contents(out) == before
    grow(data, "class0", 1)  # and images of an addition are recorded too
    run(out, "--add", str(data))
    grow(twin, "class0", 1)
    shutil.copy(data / "train/class1/2.jpg", twin / "train/class1/2.jpg")
    run(out, "--add", str(twin))
    altered(twin / "train" / "class0" / "100.jpg", 100)
    with pytest.raises(DataError, match="1 train images of photos have names"):
        run(out, "--add", str(twin))


def test_sets_without_fingerprints_go_by_names_and_say_so(
    data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (out / f"{split}.prints.npy").unlink()
    altered(data / "train" / "class0" / "1.jpg", -1)
    grow(data, "class0", 1)
    run(out, "--add", str(data))
    assert "WARNING: 6 of these are taken for known ones BY THEIR NAMES ALONE" in (
        capsys.readouterr().out
    )
    assert names(out, "train")[6:] == ["train/class0/100.jpg"]
    shutil.copytree(data, tmp_path / "others")
    with pytest.raises(DataError, match=r"6 train images of others have names .*came from photos"):
        run(out, "--add", str(tmp_path / "others"))
    np.save(out / "val.prints.npy", np.zeros(3, np.uint64))
    with pytest.raises(DataError, match=r"val\.prints\.npy was changed .*delete it"):
        run(out, "--add", str(data))
    # A container from before the manifest knew them:
    beton = out / "val.beton"
    write_manifest(beton, dataclasses.replace(read_manifest(beton), prints_sha256=""))
    with pytest.raises(DataError, match=r"val\.prints\.npy is of another container: .*delete it"):
        run(out, "--add", str(data))
    (out / "val.prints.npy").unlink()
    (out / "val.prints.npy").mkdir()
    with pytest.raises(DataError, match=r"val\.prints\.npy cannot be read: a folder.*delete it"):
        run(out, "--add", str(data))
    (out / "val.prints.npy").rmdir()
    (out / "val.prints.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"val\.prints\.npy holds no fingerprints .*delete it"):
        run(out, "--add", str(data))


def test_other_classes_are_refused_or_follow_the_old_ones(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "more"
    for split, kind in (("train", "aardvark"), ("train", "class1"), ("val", "class1")):
        grow(other, kind, 2, split=split, start=200)
    with pytest.raises(DataError, match=r"more has 1 classes that .* lacks \(aardvark\).*--new-cl"):
        run(out, "--add", str(other))
    for path in (other / "val").rglob("*.jpg"):
        path.unlink()
    save(photo(7), other / "val" / "class1" / "0.jpg", quality=95)  # in the set already
    (out / "val.names.txt").read_text()
    with pytest.raises(DataError, match="1 val images of more have names"):
        run(out, "--add", str(other), "--new-classes")
    save(photo(7), other / "val" / "class1" / "8.jpg", quality=95)
    (other / "val" / "class1" / "0.jpg").unlink()
    run(out, "--add", str(other), "--new-classes")
    train, val = (read_manifest(find_container(out, split)) for split in ("train", "val"))
    assert train.classes == val.classes == ["class0", "class1", "aardvark"]
    assert train.class_counts == [3, 5, 2] and val.class_counts == [2, 3, 0]
    found = read_samples(out / "train", range(10))
    assert [sample.label for sample in found] == [0, 0, 0, 1, 1, 1, 2, 2, 1, 1]


def test_a_split_without_new_images_learns_of_new_classes(data: Path, out: Path) -> None:
    grow(data, "class2", 2)
    run(out, "--add", str(data), "--new-classes")
    val = read_manifest(out / "val.beton")
    assert val.classes == ["class0", "class1", "class2"] and val.class_counts == [2, 2, 0]
    assert read_manifest(out / "train").classes == val.classes
    assert verify_main([str(out / "val.beton")]) == 0


def test_images_with_and_without_labels_do_not_mix(data: Path, out: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    save(photo(1), loose / "1.jpg", quality=95)
    with pytest.raises(DataError, match="have labels, those of loose have none"):
        run(out, "--add", str(loose))
    run(tmp_path / "plain", "--data", str(loose))
    with pytest.raises(DataError, match=r"have no labels, those of photos have: .*SOURCE=images"):
        run(tmp_path / "plain", "--add", str(data))
    with pytest.raises(DataError, match=r"has no val images, and photos has 4: .*VAL=0"):
        run(tmp_path / "plain", "--add", str(data), "--source", "images")
    run(tmp_path / "plain", "--add", str(data / "train"), "--source", "images")
    manifest = read_manifest(tmp_path / "plain" / "train")
    assert manifest.classes == [] and manifest.count == 7


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--quality", "70", "QUALITY=90"),
        ("--store", "raw", "STORE=jpg"),
        ("--max-resolution", "64", "MAX_RESOLUTION=512"),
        ("--mask-size", "32", "MASK_SIZE=16"),
        ("--channels", "1", "CHANNELS=3"),
        ("--pages", "all", "PAGES=first"),
        ("--range", "0:99", "RANGE=full"),
        ("--no-icc", "", "ARGS=--icc"),
        ("--keep-warned", "", "no --keep-warned"),
    ],
)
def test_images_are_added_as_the_others_are_stored(
    data: Path, out: Path, option: str, value: str, told: str
) -> None:
    grow(data, "class0", 1)
    with pytest.raises(DataError, match=f"was made with {told}: give the same"):
        run(out, "--add", str(data), *filter(None, (option, value)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--channels", "1"), "CHANNELS=1"),
        (("--pages", "all"), "PAGES=all"),
        (("--no-icc",), "ARGS=--no-icc"),
        (("--keep-warned",), "ARGS=--keep-warned"),
        (("--range", "0:99"), ""),
    ],
)
def test_what_the_set_was_made_with_is_not_left_out(
    data: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    """Only a range, and channels if asked for by auto, are taken over."""
    out = tmp_path / "out"
    run(out, "--data", str(data), *options)
    grow(data, "class0", 1)
    if told:
        with pytest.raises(DataError, match=f"was made with {told}: give the same"):
            run(out, "--add", str(data))
    run(out, "--add", str(data), *(("--channels", "auto") if "1" in options else options))
    store = read_manifest(out / "train").store
    shards = [read_manifest(path).store for path in sorted((out / "train").glob("*.beton"))]
    for key in ("channels", "pages", "icc", "keep_warned", "range"):
        assert [shard.get(key) for shard in shards] == [store.get(key)] * 2


def test_there_must_be_a_set_to_add_to(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--add: .*has neither train\.beton.* --data"):
        run(tmp_path / "none", "--add", str(data))


class Crash(BaseException):
    """The end of a process, here and now."""


@pytest.mark.parametrize("crash_at", range(0, 16, 3))
def test_an_addition_that_crashes_among_its_renames_is_finished(
    data: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    crash_at: int,
) -> None:
    """The next command does that first, whatever else it is to do."""
    grow(data, "class0", 2)
    real, calls = os.replace, [0]

    def replace(source: str, target: str) -> None:
        if (out / ".publish.json").exists():
            calls[0] += 1
            if calls[0] > crash_at:
                raise Crash
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(os, "replace", replace)
        run(out, "--add", str(data))
    cut_short = (out / ".publish.json").exists()
    if not (out / "train.json").exists() and (out / "train").exists():
        with pytest.raises(DataError, match=r"cut short while .*: run the same again"):
            read_manifest(out / "train")
    capsys.readouterr()
    run(out, "--add", str(data))
    assert ("an earlier run was cut short" in capsys.readouterr().out) == cut_short
    assert names(out, "train")[6:] == ["train/class0/100.jpg", "train/class0/101.jpg"]
    assert read_manifest(out / "train").count == 8 and not list(out.glob(".*"))


def test_a_conversion_that_crashes_among_its_renames_is_not_made_again(
    data: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = os.replace

    def replace(source: str, target: str) -> None:
        if str(target) == str(out / "train.names.txt"):
            raise Crash
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(os, "replace", replace)
        run(out, "--data", str(data), "--quality", "70")
    with pytest.raises(DataError, match=r"train\.json is missing: .* `make beton` was cut short"):
        read_manifest(out / "train.beton")
    run(out, "--data", str(data), "--quality", "70")
    assert "this conversion was complete: its files have their names now" in capsys.readouterr().out
    for split in ("train", "val"):
        assert read_manifest(out / f"{split}.beton").store["quality"] == 70
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("damage", ["names cut", "container cut"])
def test_nothing_is_added_to_a_damaged_set(data: Path, out: Path, damage: str) -> None:
    path = out / ("train.names.txt" if damage == "names cut" else "train.beton")
    path.write_bytes(path.read_bytes()[:-40])
    before = contents(out)
    grow(data, "class0", 1)
    with pytest.raises(DataError, match="was cut short or belongs to another container"):
        run(out, "--add", str(data))
    assert contents(out) == before


def test_images_are_added_in_the_range_of_the_others_to_its_last_digit(tmp_path: Path) -> None:
    values = 1_234_000 + (np.add.outer(np.arange(48), np.arange(64)) % 7).astype(np.int32)
    for folder, count in (("old", 2), ("new", 3)):
        for number in range(count):
            save(values, tmp_path / folder / "train" / "ab"[number % 2] / f"{number}.tif")
    given = ["--val", "0", "--store", "raw"]
    run(tmp_path / "out", "--data", str(tmp_path / "old"), "--range", "1234000:1234006", *given)
    stated = read_manifest(tmp_path / "out/train.beton").store["range"]
    assert [*map(float, stated.split(":"))] == [1234000, 1234006]
    run(tmp_path / "out", "--add", str(tmp_path / "new"), *given)
    first, last = read_samples(tmp_path / "out/train", [0, 2])
    np.testing.assert_array_equal(first.image, last.image)
    assert first.image.max() == 255
