"""Parts of image folders: lists with equally many images of each class."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from harl_fast.errors import DataError, OutputError
from preprocess.balanced import main, write_balanced_list


def tree(folder: Path, *, held_out: str = "test") -> Path:
    for split, count in (("train", 30), (held_out, 4)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                (folder / split / name / f"{number:02d}.jpg").touch()
    (folder / "train" / "cat" / ".DS_Store").touch()
    (folder / "train" / "cat" / "0 notes.txt").touch()
    (folder / "train" / "cat" / "00 inner").mkdir()
    (folder / "train" / "@eaDir").mkdir()
    return folder


@pytest.mark.parametrize(("count", "train", "held_out"), [(24, 10, 2), (1, 1, 1), (10_000, 30, 4)])
def test_each_class_gives_as_many_images(
    tmp_path: Path, count: int, train: int, held_out: int
) -> None:
    out = write_balanced_list(tree(tmp_path / "set"), tmp_path / "list.csv", count=count)
    with open(out, newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = Counter((row["split"], row["label"]) for row in rows)
    assert found == {
        (split, name): number
        for split, number in (("train", train), ("test", held_out))
        for name in ("cat", "dog")
    }
    assert all(Path(row["path"]).is_absolute() and row["path"].endswith(".jpg") for row in rows)


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/ has no class folders .*expected FOLDER/train"):
        write_balanced_list(tmp_path, tmp_path / "list.csv", count=9)
    (tree(tmp_path / "set") / "test").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="val/ has no class folders or is not there"):
        write_balanced_list(tmp_path / "set", tmp_path / "list.csv", count=9)
    assert not (tmp_path / "list.csv").exists()


def test_a_name_that_no_list_can_hold_is_refused(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set")
    (folder / "train" / "cat" / os.fsdecode(b"\xff.jpg")).touch()
    with pytest.raises(DataError, match=r"\\udcff\.jpg: lists are UTF-8, and this name is not"):
        write_balanced_list(folder, tmp_path / "list.csv", count=1000)
    assert not (tmp_path / "list.csv").exists()


def test_splits_have_their_names_in_any_case(tmp_path: Path) -> None:
    for split in ("Train", "Val"):
        for kind in "ab":
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            (folder / "1.jpg").touch()
    path = write_balanced_list(tmp_path / "images", tmp_path / "list.csv", count=4)
    rows = list(csv.DictReader(path.open()))
    assert sorted({row["split"] for row in rows}) == ["Train", "Val"] and len(rows) == 4


@pytest.mark.parametrize("name", ["part.txt", "part.jsonl", "part"])
def test_a_list_under_the_suffix_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    """It would be read as another kind of list."""
    with pytest.raises(OutputError, match=rf"{name} would hold a .csv: end its name in .csv"):
        main([str(tmp_path), "--count", "2", "--out", str(tmp_path / name)])
