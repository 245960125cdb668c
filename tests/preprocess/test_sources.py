"""Image folders of every layout are listed in a fixed order, and unusable ones are explained."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets

from harl_fast.errors import DataError
from preprocess.sources import DATASETS, folder_source, torchvision_source
from tests.preprocess.support import image_folder, photo, save


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def layout(root: Path, *names: str) -> Path:
    for name in names:
        touch(root / name)
    return root


USUAL = ("train/b/1.jpg", "train/a/2.jpg", "val/a/3.jpg")


def test_samples_are_ordered_by_class_and_name_whatever_the_disk_says(tmp_path: Path) -> None:
    source = folder_source(layout(tmp_path / "set", *USUAL, "train/a/1.jpg", "val/b/x/y/9.PNG"))
    assert source.name == "set" and source.classes == ["a", "b"]
    train, val = source.splits["train"], source.splits["val"]
    assert train.names == ["train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg"]
    assert train.labels == [0, 0, 1]
    assert val.names == ["val/a/3.jpg", "val/b/x/y/9.PNG"]
    assert val.image(1) == tmp_path / "set" / "val/b/x/y/9.PNG"


def test_imagenets_layout_and_all_suffixes_are_taken(tmp_path: Path) -> None:
    names = [f"train/n01440764/n01440764_{i}.{s}" for i, s in enumerate(("JPEG", "jpg", "WebP"))]
    source = folder_source(layout(tmp_path, *names, "train/n2/1.tif", "val/n2/1.gif"))
    assert source.splits["train"].names[:3] == sorted(names)


def test_a_test_folder_serves_as_val(tmp_path: Path) -> None:
    source = folder_source(layout(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"))
    assert source.splits["val"].names == ["test/a/1.jpg"]


def test_other_files_are_listed_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    source = folder_source(layout(tmp_path, *USUAL, "train/a/notes.txt", "train/a/.DS_Store"))
    rejected = source.splits["train"].rejected
    assert [item.name for item in rejected] == ["train/a/notes.txt"]
    assert "not an image by its name" in rejected[0].reason


def test_files_beside_the_splits_are_in_the_report(tmp_path: Path) -> None:
    beside = ("README.md", "labels.csv", "stray.jpg", ".DS_Store", "masks/a/1.png")
    source = folder_source(layout(tmp_path, *USUAL, *beside))
    found = [(one.name, one.reason) for one in source.splits["train"].rejected]
    assert found == [(name, "beside train/ and val/") for name in sorted(beside[:3])]
    assert source.notes == [
        "not read, being beside train/ and val/: masks/, 1 files in no folder (stray.jpg)"
    ]


def test_links_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    layout(tmp_path / "store", "a/1.jpg", "b/1.jpg")
    layout(tmp_path / "set", "val/a/1.jpg", "train/c/1.jpg")
    (tmp_path / "set/train/a").symlink_to(tmp_path / "store/a")
    (tmp_path / "set/train/c/again").symlink_to(tmp_path / "set/train")
    source = folder_source(tmp_path / "set")
    assert source.splits["train"].names == ["train/a/1.jpg", "train/c/1.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no train/ folder.*expected FOLDER/train/<class>"),
        (
            ["x/y/train/a/1.jpg", "x/y/val/a/1.jpg"],
            r"no train/ folder, but .*x/y has: give that one",
        ),
        (["train/a/1.txt", "val/a/1.jpg"], r"train holds no image"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.txt"], r"val holds no image"),
        (["train/a/1.jpg", "val/a/1.jpg"], r"only one class \(a\)"),
        ([*USUAL, "val/zebra/1.jpg"], r"1 class folders that train/ lacks \(zebra\)"),
        ([*USUAL, "val/loose.jpg"], r"1 images outside any class folder"),
    ],
)
def test_an_unusable_layout_is_explained(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder_source(layout(tmp_path, *names))


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [*USUAL, "val/c/1.jpg", "train/c/1.psd"],
            r"val has images of the class c, but train/c has no image: none of its 1 files is one "
            r"\(c/1\.psd: not an image by its name",
        ),
        ([*USUAL, "train/c/x/.hidden", "val/c/1.jpg"], r"train/c has no image: it holds no file"),
        (
            [*USUAL, f"train/{DECOMPOSED}/1.jpg", f"val/{COMPOSED}/1.jpg"],
            r"class 'caf\\xe9' and train/ has 'cafe\\u0301': two Unicode forms of café.*convmv",
        ),
        (
            [*USUAL, f"train/{DECOMPOSED}/1.jpg", f"train/{COMPOSED}/1.jpg"],
            r"two class folders that both read café.*convmv",
        ),
        (
            ["train/train/a/1.jpg", "train/train/b/1.jpg", "val/val/a/1.jpg"],
            r"only one class \(train\), and that holds folders itself \(a, b\).*move them from "
            r".*train/train up to .*train,",
        ),
        (
            ["train/a/1.psd", "val/a/1.jpg"],
            r"train holds no image \(train/a has no image: none of its 1 files",
        ),
        ([*USUAL, "val/new\nline/1.jpg"], r"train/ lacks \(new\\nline\)"),
    ],
)
def test_classes_that_do_not_fit_are_explained(
    tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        folder_source(layout(tmp_path, *names))


def test_a_class_folder_without_images_is_said_and_is_no_class(tmp_path: Path) -> None:
    source = folder_source(layout(tmp_path, *USUAL, "train/c/1.heic", "val/d/.keep"))
    assert source.classes == ["a", "b"]
    said = "\n".join(source.notes)
    assert "train/c has no image: none of its 1 files is one (c/1.heic: not an image" in said
    assert "val/d has no image: it holds no file; it is no class here" in said


@pytest.mark.parametrize("name", ["c", "c.v1"])
def test_a_class_that_is_a_dead_link_is_said_by_name(tmp_path: Path, name: str) -> None:
    root = layout(tmp_path, *USUAL)
    for split in ("train", "val"):
        (root / split / name).symlink_to(tmp_path / "gone")
    source = folder_source(root)
    said = "\n".join(source.notes)
    for split in ("train", "val"):
        assert f"{split}/{name} has no image: it is a link that leads to nothing" in said
        (item,) = source.splits[split].rejected
        assert item.name == f"{split}/{name}" and "a link that leads to nothing" in item.reason
    (root / "val" / name).unlink()
    layout(tmp_path, f"val/{name}/1.jpg")
    with pytest.raises(DataError, match=rf"class {name}, but train/{name} has no image: it is a"):
        folder_source(root)


def test_all_names_of_jpegs_are_known_and_files_of_other_names_by_content(tmp_path: Path) -> None:
    known = [f"train/a/{n}.{s}" for n, s in enumerate(("jfif", "jpe", "JPG", "JFIF", "pjpeg"))]
    layout(tmp_path, *USUAL, *known, "train/a/README")
    for name, suffix in (("plain", "jpg"), ("web", "webp"), ("deep", "tif"), ("n.5", "png")):
        save(photo(1), tmp_path / f"{name}.{suffix}").rename(tmp_path / "train/a" / name)
    source = folder_source(tmp_path)
    by_content = (f"train/a/{name}" for name in ("plain", "web", "deep", "n.5"))
    found = {"train/a/2.jpg", *known, *by_content}
    assert {name for name in source.splits["train"].names if "/a/" in name} == found
    strange = [item.name for item in source.splits["train"].rejected]
    assert strange == ["train/a/README"]


def test_what_systems_leave_is_no_image_and_no_class_but_counted(tmp_path: Path) -> None:
    left = ["a/@eaDir/1.jpg", "@eaDir/1.jpg", "__MACOSX/1.jpg", ".thumbnails/1.jpg", "a/Thumbs.db"]
    left += ["a/._2.jpg", "a/.DS_Store", "#recycle/1.jpg", "a/desktop.ini"]
    source = folder_source(layout(tmp_path, *USUAL, *(f"train/{name}" for name in left)))
    assert source.classes == ["a", "b"] and source.splits["train"].rejected == []
    assert source.splits["train"].names == ["train/a/2.jpg", "train/b/1.jpg"]
    (note,) = source.notes
    assert f"train: passed over {len(left)} hidden or system files and folders" in note


def test_two_links_to_one_folder_are_refused_and_a_circle_is_said(tmp_path: Path) -> None:
    layout(tmp_path / "store", "a/1.jpg")
    layout(tmp_path / "set", *USUAL)
    circle = tmp_path / "set/train/a/again"
    circle.symlink_to(tmp_path / "set/train")
    assert folder_source(tmp_path / "set").notes == [
        "train: train/a/again leads back to where it lies: not followed"
    ]
    for name in ("c", "d"):
        (tmp_path / "set/train" / name).symlink_to(tmp_path / "store/a")
    with pytest.raises(DataError, match=r"train/c and .*train/d are one folder by a link"):
        folder_source(tmp_path / "set")


def test_a_folder_that_is_none_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        folder_source(tmp_path / "missing")


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout(tmp_path, *USUAL)

    def walk(base: Path, *, followlinks: bool, onerror: Any) -> list[Any]:
        onerror(PermissionError(13, "Permission denied", str(base / "b")))
        return []

    # Tests may run as root, whom no mode bits stop.
    monkeypatch.setattr("preprocess.images.listing.os.walk", walk)
    with pytest.raises(DataError, match=r"train/b cannot be read \(Permission denied\)"):
        folder_source(tmp_path)


@pytest.mark.parametrize("link", ["val", "val/b"])
def test_a_folder_that_serves_both_splits_by_a_link_is_refused(tmp_path: Path, link: str) -> None:
    for name in ("a", "b"):
        save(photo(0), tmp_path / "train" / name / "x.png")
        save(photo(0), tmp_path / "val" / name / "x.png")
    shutil.rmtree(tmp_path / link)
    (tmp_path / link).symlink_to(tmp_path / "train" / link.removeprefix("val").strip("/"))
    with pytest.raises(DataError, match="are one folder by a link: features would be judged"):
        folder_source(tmp_path)


def test_a_failed_download_names_the_way_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(DataError, match=r"cifar10 could not be downloaded.*no route.*--data"):
        torchvision_source("cifar10", tmp_path)


def test_a_full_disk_is_not_blamed_on_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "cifar-10.tar.gz")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", full)
    with pytest.raises(OSError, match="No space left"):
        torchvision_source("cifar10", tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_scipy(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(torchvision.datasets, "Flowers102", without_scipy)
    with pytest.raises(DataError, match="pip install scipy"):
        torchvision_source("flowers102", tmp_path)


def test_a_download_that_was_cut_short_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path / "imagenette2-320")
    monkeypatch.setattr(torchvision.datasets, "Imagenette", lambda *_, **__: None)
    with pytest.raises(DataError, match=r"has \(8, 4\) images, \(9469, 3925\) are expected"):
        torchvision_source("imagenette", tmp_path)


def test_sets_in_memory_give_pixels_and_labels(tmp_path: Path) -> None:
    pixels = np.arange(4 * 3 * 96 * 96, dtype=np.uint8).reshape(4, 3, 96, 96)
    part = SimpleNamespace(data=pixels, labels=np.array([1, 0, 1, 0]), classes=["x", "y"])
    source = DATASETS["stl10"].read(SimpleNamespace(STL10=lambda *_, **__: part), tmp_path)
    image = source.splits["val"].image(2)
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, pixels[2].transpose(1, 2, 0))
    assert source.splits["val"].labels == [1, 0, 1, 0]
    assert source.splits["train"].names[3] == "train/000003"

    batch = SimpleNamespace(data=np.zeros((2, 32, 32, 3), np.uint8), targets=[5, 6], classes=["x"])
    source = DATASETS["cifar10"].read(SimpleNamespace(CIFAR10=lambda *_, **__: batch), tmp_path)
    assert source.name == "cifar10" and source.splits["train"].labels == [5, 6]


def test_sets_of_files_give_paths_below_the_cache(tmp_path: Path) -> None:
    def flowers(root: Path, *, split: str, download: bool) -> SimpleNamespace:
        file = root / "flowers-102/jpg" / f"{split}.jpg"
        return SimpleNamespace(
            _image_files=[file], _labels=[{"train": 3, "val": 4, "test": 5}[split]]
        )

    source = DATASETS["flowers102"].read(SimpleNamespace(Flowers102=flowers), tmp_path)
    train = source.splits["train"]
    assert train.labels == [3, 4] and source.splits["val"].labels == [5]
    assert train.image(0) == tmp_path / "flowers-102/jpg/train.jpg"
    assert len(source.classes) == 102

    def pets(root: Path, *, split: str, download: bool) -> SimpleNamespace:
        file = root / "oxford-iiit-pet/images" / f"{split}.jpg"
        return SimpleNamespace(_images=[file], _labels=[7], classes=["Abyssinian"])

    source = DATASETS["pets"].read(SimpleNamespace(OxfordIIITPet=pets), tmp_path)
    assert source.splits["val"].names == ["oxford-iiit-pet/images/test.jpg"]


def test_a_copy_of_a_folder_gives_the_same_list(tmp_path: Path) -> None:
    first = image_folder(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    assert (
        folder_source(first).splits["train"].names
        == folder_source(tmp_path / "b").splits["train"].names
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_name_with_a_space_at_its_end_is_shown_and_refused(
    tmp_path: Path, split: str
) -> None:
    layout(tmp_path, *USUAL, f"{split}/a /1.jpg")
    with pytest.raises(DataError, match=f"names begin or end with a space .'{split}/a '"):
        folder_source(tmp_path)


@pytest.mark.parametrize("link", ["hardlink_to", "symlink_to"])
def test_files_that_are_two_images_by_links_are_counted(tmp_path: Path, link: str) -> None:
    layout(tmp_path, *USUAL)
    assert folder_source(tmp_path).notes == []
    for name in ("train/b/again.jpg", "train/b/and_again.jpg"):
        getattr(tmp_path / name, link)(tmp_path / "train/a/2.jpg")
    (tmp_path / "train/b/gone.jpg").symlink_to("nowhere")
    (tmp_path / "train/b/lost.jpg").symlink_to("nowhere")
    assert folder_source(tmp_path).notes == [
        "2 images of train are files of other images there, by links"
    ]
    getattr(tmp_path / "val/a/4.jpg", link)(tmp_path / "train/b/1.jpg")
    assert folder_source(tmp_path).notes[1:] == [
        "1 images of val are files of train by links (val/a/4.jpg is train/b/1.jpg): features "
        "will be judged on images they were trained on"
    ]


def test_letters_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    layout(tmp_path, *USUAL, "val/\N{CYRILLIC SMALL LETTER A}/1.jpg")
    with pytest.raises(DataError, match=r"train/ lacks \(. = '\\u0430'\)"):
        folder_source(tmp_path)
