"""What a path is taken for: class folders, folders of any layout; what is printed and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harl_fast.errors import DataError
from preprocess.images.listing import list_images
from preprocess.sources import SOURCES, Choices, Reader, Source, folder_source, read_source
from preprocess.sources.base import UNLABELLED
from preprocess.sources.layout import arranged, kind_of
from tests.preprocess.support import photo, save
from tests.preprocess.test_sources import layout

LAYOUTS = {
    "folders": ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"),
    "classes": ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/notes.txt"),
    "images": ("1.jpg", "2019/Rome/2.jpg", "2020/3.jpg"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_layout_is_known_by_its_names(kind: str, tmp_path: Path) -> None:
    layout(tmp_path, *LAYOUTS[kind], ".hidden/1.jpg", "a/@eaDir/thumb/1.jpg")
    assert [name for name, reader in SOURCES.items() if reader.fits(tmp_path)] == [kind]
    assert kind_of(list_images(tmp_path)) == kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a/1.jpg"], "images"),  # one folder is no class
        (["a/1.jpg", "b/1.jpg", "cover.jpg"], "images"),
        (["a/1.jpg", "b/1.jpg", "b/deep/2.jpg"], "images"),
        (["a/1.jpg", "b/1.jpg", "b/deep/notes.txt", "README"], "classes"),
        (["train/1.jpg", "train/2.jpg"], "images"),
        (["train/a/1.jpg", "test/1.jpg"], "folders"),
        (["Train/a/1.jpg", "VAL/a/1.jpg"], "folders"),
        (["hobbies/train/steam/1.jpg", "Rome/2.jpg"], "images"),
    ],
)
def test_layouts_that_are_nearly_another(names: list[str], kind: str, tmp_path: Path) -> None:
    layout(tmp_path, *names)
    assert [name for name, reader in SOURCES.items() if reader.fits(tmp_path)] == [kind]


def test_images_of_unknown_names_are_found_by_their_first_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(photo(1), tmp_path / name / "x.bmp").rename(tmp_path / name / "x.dat")
    assert SOURCES["classes"].fits(tmp_path)
    assert read_source(tmp_path, Choices(val=0)).splits["train"].names == ["a/x.dat", "b/x.dat"]


def test_images_behind_links_are_found_and_a_circle_ends(tmp_path: Path) -> None:
    layout(tmp_path / "store", "a/b/1.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/circle").symlink_to(tmp_path / "set")
    assert not SOURCES["images"].fits(tmp_path / "set")
    (tmp_path / "set/link").symlink_to(tmp_path / "store")
    source = read_source(tmp_path / "set", Choices())
    assert source.splits["train"].names == ["link/a/b/1.jpg"]
    assert source.notes == ["set: set/circle leads back to where it lies: not followed"]


def test_the_guess_is_printed_with_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read_source(layout(tmp_path / "set", *LAYOUTS["images"]), Choices())
    assert source.classes == [] and source.splits.keys() == {"train"}
    assert source.splits["train"].labels == [UNLABELLED] * 3
    assert source.splits["train"].image(1) == tmp_path / "set/2019/Rome/2.jpg"
    said = capsys.readouterr().out
    assert "read as images in any folders: 3 train images, no labels; --source says" in said
    read_source(layout(tmp_path / "labelled", *LAYOUTS["classes"]), Choices())
    said = capsys.readouterr().out
    assert "read as a folder per class: 2 train and 1 val images of 2 classes; --source" in said
    assert "held out as val: 1 of 3 images, of each class its share (0.05); see --val" in said
    read_source(tmp_path / "labelled", Choices("images"))
    assert "4 train" not in (said := capsys.readouterr().out) and "--source" not in said


def test_the_guess_is_printed_before_anything_is_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photos.tgz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is no whole archive"):
        read_source(path, Choices(scratch=tmp_path / "scratch"))
    said = f"looking for images in {path}, as a .zip or .tar of folders; --source says otherwise\n"
    assert capsys.readouterr().out.startswith(f"{said}unpacking {path} to ")


def test_a_source_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    layout(tmp_path, *LAYOUTS["folders"])
    source = read_source(tmp_path, Choices("images"))
    assert source.splits["val"].names == ["val/a/1.jpg"] and source.classes == []
    layout(tmp_path, "a/1.jpg")
    assert len(read_source(tmp_path, Choices("images")).splits["train"].names) == 4


def test_class_folders_beside_a_table_fit_equally(tmp_path: Path) -> None:
    layout(tmp_path, *LAYOUTS["classes"], "all.parquet")
    with pytest.raises(
        DataError,
        match=r"can be read as a folder per class or as Parquet files, .*: choose by --source "
        r"classes or --source parquet",
    ) as caught:
        read_source(tmp_path, Choices())
    assert "\n" not in str(caught.value)
    assert len(read_source(tmp_path, Choices("classes")).splits["train"].names) == 2


@pytest.mark.parametrize("container", ["train.beton", "train/00000-of-00002.beton"])
def test_a_folder_of_containers_is_no_folder_of_images(tmp_path: Path, container: str) -> None:
    """Its sheet of views and its masks are image files, too."""
    layout(tmp_path, container, "preview.png", "masks/train/a/1.png", "masks/val/a/2.png")
    with pytest.raises(DataError, match=r"holds containers, .*: give the images that they were"):
        read_source(tmp_path, Choices())
    source = read_source(tmp_path, Choices("images"))
    assert source.splits["train"].names == [
        "masks/train/a/1.png",
        "masks/val/a/2.png",
        "preview.png",
    ]


def test_folders_named_after_splits_are_no_classes(tmp_path: Path) -> None:
    layout(tmp_path, "train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "annotations/a.json")
    with pytest.raises(
        DataError,
        match=r"named after splits \(train2017, val2017\), which would be its classes: expected "
        r"FOLDER/train/.*, or --source images .*; --source classes takes them for classes",
    ):
        read_source(tmp_path, Choices())
    assert read_source(tmp_path, Choices("classes")).classes == ["train2017", "val2017"]
    layout(tmp_path, "bus/4.jpg")
    assert read_source(tmp_path, Choices()).classes == ["bus", "train2017", "val2017"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["training/a/1.jpg", "testing/a/2.jpg", "testing/b/3.jpg"],
            "2 images .testing/a, testing/b",
        ),
        (["images/train/1.jpg", "images/val/2.jpg", "labels/val/2.txt"], "1 images .images/val"),
        (["train/1.jpg", "val/2.jpg"], ""),
        (["test drives/1.jpg", "Rome/2.jpg", "3.jpg"], ""),
    ],
)
def test_images_are_not_held_out_in_silence_where_their_folders_say_so(
    tmp_path: Path, names: list[str], told: str
) -> None:
    notes = "\n".join(read_source(layout(tmp_path, *names), Choices("images")).notes)
    assert ("named after held-out parts" in notes) == bool(told)
    count, _, folders = told.partition(" .")
    assert not told or (f"{count} in folders" in notes and f"({folders}) are read like" in notes)


def test_two_that_fit_equally_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "other", Reader("others", lambda _: True, SOURCES["images"].read))
    layout(tmp_path, *LAYOUTS["classes"])
    with pytest.raises(DataError, match=r"as a folder per class or as others: choose by --source"):
        read_source(tmp_path, Choices())
    assert len(read_source(tmp_path, Choices("other")).splits["train"].names) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"holds nothing that can be read as images. What can be: folders: class folders in"),
        (["notes.txt", ".DS_Store"], r"holds nothing that can be read"),
        (
            ["x/y/train/a/1.jpg", "x/y/val/a/1.jpg"],
            r"no train/ folder, but .*x/y has: give that one; --source images",
        ),
    ],
)
def test_what_nothing_fits_is_explained(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(layout(tmp_path, *names), Choices())
    with pytest.raises(DataError, match="does not exist"):
        read_source(tmp_path / "gone", Choices())


def test_one_class_is_refused_with_the_way_without_labels(tmp_path: Path) -> None:
    layout(tmp_path, "train/a/1.jpg", "train/a/2.jpg")
    with pytest.raises(DataError, match=r"only one class \(a\).*--source images reads"):
        read_source(tmp_path, Choices())
    assert len(read_source(tmp_path, Choices("images")).splits["train"].names) == 2


def test_splits_of_images_without_labels_stay_apart(tmp_path: Path) -> None:
    layout(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg", "test/x.txt")
    source = read_source(tmp_path, Choices())
    assert source.splits["train"].names == ["train/1.jpg", "train/2.jpg"]
    assert source.splits["val"].names == ["test/3.jpg"]
    assert [item.name for item in source.splits["train"].rejected] == ["test/x.txt"]


def in_archive(folder: Path) -> Source:
    return arranged("set", "set.zip", list_images(folder), Choices())


@pytest.mark.parametrize("read", [folder_source, in_archive])
def test_a_split_has_its_name_in_any_case(read: Callable[[Path], Source], tmp_path: Path) -> None:
    layout(tmp_path, *(f"{part}/{kind}/1.jpg" for part in ("Train", "VAL") for kind in "ab"))
    splits = read(tmp_path).splits
    assert splits["train"].names == ["Train/a/1.jpg", "Train/b/1.jpg"]
    assert splits["val"].names == ["VAL/a/1.jpg", "VAL/b/1.jpg"]


def by_guess(folder: Path) -> Source:
    return read_source(folder, Choices())


@pytest.mark.parametrize("read", [by_guess, in_archive])
@pytest.mark.parametrize("labels", [True, False])
def test_what_lies_beside_the_splits_is_said(
    read: Callable[[Path], Source], labels: bool, tmp_path: Path
) -> None:
    parts = ["train", "TRAIN", "val", "Val", "test", *["extra"] * labels]
    layout(tmp_path, *(f"{part}/{kind}1.jpg" for part in parts for kind in ("a/", "b/") if labels))
    layout(tmp_path, *(f"{part}/1.jpg" for part in parts if not labels))
    said = [note for note in read(tmp_path).notes if note.startswith("not read, being beside")]
    others = "TRAIN/, Val/, extra/, test/" if labels else "TRAIN/, Val/, test/"
    assert said == [f"not read, being beside train/ and val/: {others}"]


@pytest.mark.parametrize("read", [folder_source, in_archive])
def test_images_beside_the_splits_are_counted(
    read: Callable[[Path], Source], tmp_path: Path
) -> None:
    layout(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "2.jpg", "3.jpg")
    assert "not read, being beside train/: 2 files in no folder (2.jpg)" in read(tmp_path).notes


def test_folders_that_lose_all_files_are_said_and_each_file_is_reported(tmp_path: Path) -> None:
    layout(tmp_path, "a/1.jpg", "a/note.txt", "top.md", *(f"dead{n}/x.mov" for n in range(7)))
    (tmp_path / "dead0/y.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    save(photo(1), tmp_path / "raw.tif").rename(tmp_path / "raw.NEF")
    source = read_source(tmp_path, Choices())
    reasons = {item.name: item.reason for item in source.splits["train"].rejected}
    assert reasons.keys() >= {"a/note.txt", "top.md", "dead6/x.mov"} and len(reasons) == 11
    assert "HEIF" in reasons["dead0/y.heic"] and "raw file" in reasons["raw.NEF"]
    assert source.notes[0].startswith("dead0 has no image: none of its 2 files is one (dead0/x.mov")
    assert len(source.notes) == 6 and "2 more folders" in source.notes[-1]


def test_a_whole_listing_is_arranged_as_the_folder_itself(tmp_path: Path) -> None:
    names = [f"train/{kind}/{n}.jpg" for kind in "ab" for n in range(30)]
    layout(tmp_path, *names, "train/a/x.txt", "train/c/.keep", "train/.hidden")
    for more in ((), ("test/b/1.jpg", "test/y.txt")):
        layout(tmp_path, *more)
        direct = folder_source(tmp_path)
        whole = arranged("set", "set.zip", list_images(tmp_path), Choices())
        assert whole.classes == direct.classes and whole.splits.keys() == direct.splits.keys()
        for name, split in whole.splits.items():
            other = direct.splits[name]
            assert (split.names, split.labels) == (other.names, other.labels)
            assert split.rejected == other.rejected and split.root is None


def test_a_link_that_leads_to_itself_is_a_file_that_is_not_read(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for number in range(3):
            save(photo(number), tmp_path / "set" / kind / f"{number}.png")
    (tmp_path / "set" / "b" / "loop.txt").symlink_to("loop.txt")
    train = read_source(tmp_path / "set", Choices(val=0.0)).splits["train"]
    assert len(train.names) == 6
    assert [item.name for item in train.rejected] == ["b/loop.txt"]
