"""Whose mask an image gets, whatever its class and the folder of its split are called."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harl_fast.errors import DataError
from preprocess.masks import parse_spec
from preprocess.masks.sources import MaskList, open_masks
from preprocess.sources import Choices, read_source
from tests.preprocess.packed import to_tar, to_zip, write_tar
from tests.preprocess.support import image_folder, photo, save
from tests.preprocess.trees import converted, make

HALF = np.repeat(np.array([[0, 255]], np.uint8), 4, axis=0)


def masks_of(data: Path, tree: Path, **choices: object) -> dict[str, MaskList]:
    """Return where each split's masks are looked for."""
    source = read_source(data, Choices(**{"val": 0.0, **choices}))
    names = [name for split in source.splits.values() for name in split.names]
    return {
        name: open_masks(
            split, source.classes, method=parse_spec("center"), given=tree, names=names
        )
        for name, split in source.splits.items()
    }


def wanted(masks: MaskList, tree: Path) -> dict[str, str]:
    """Return each image's mask file, relative to the tree."""
    found = {}
    for row, name in enumerate(masks.split.names):
        request = masks.request(row)
        assert request is not None and request.file is not None
        found[name] = request.file.relative_to(tree).as_posix()
    return found


def sharded(folder: Path, path: Path) -> Path:
    pytest.importorskip("webdataset", reason="pip install webdataset")
    members = {}
    for file in sorted(folder.rglob("*.jpg")):
        key = file.relative_to(folder).with_suffix("").as_posix()
        members |= {f"{key}.jpg": file.read_bytes(), f"{key}.cls": file.parent.name.encode()}
    return write_tar(path / "shards-0.tar", members).parent


KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "classes": lambda folder, _: folder,
    "images": lambda folder, _: folder,
    "zip": lambda folder, path: to_zip(folder, path.with_suffix(".zip")),
    "archive": lambda folder, path: to_tar(folder, path.with_suffix(".tar")),
    "tar": sharded,
}


@pytest.mark.parametrize("word", ["test", "val", "Valid", "validation"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_called_like_a_split_has_masks_of_its_own(
    tmp_path: Path, kind: str, word: str
) -> None:
    data, tree = tmp_path / "set", tmp_path / "masks"
    for number, name in enumerate((f"{word}/0", f"{word}/1", "zoo/0", "zoo/1")):
        save(photo(number), data / f"{name}.jpg")
        save(HALF, tree / f"{name}.png")
    (masks,) = masks_of(
        KINDS[kind](data, tmp_path / "packed"), tree, source="images" if kind == "images" else None
    ).values()
    assert len(masks.split.names) == 4
    assert wanted(masks, tree) == {
        name: name.removesuffix(".jpg") + ".png" for name in masks.split.names
    }


def test_a_list_whose_folders_are_called_like_splits_has_masks_by_its_paths(tmp_path: Path) -> None:
    names = ["train/a/1", "train/b/1", "test/a/2", "test/b/2"]
    for number, name in enumerate(names):
        save(photo(number), tmp_path / f"{name}.jpg")
        save(HALF, tmp_path / f"masks/{name}.png")
    for columns, val in ((("path", "label"), 0.0), (("path", "label", "split"), None)):
        rows = [(f"{name}.jpg", *reversed(name.split("/")[:2])) for name in names]
        lines = [",".join(row[: len(columns)]) for row in (columns, *rows)]
        (tmp_path / "list.csv").write_text("\n".join(lines))
        found: dict[str, str] = {}
        for masks in masks_of(tmp_path / "list.csv", tmp_path / "masks", val=val).values():
            found |= wanted(masks, tmp_path / "masks")
        assert found == {f"{name}.jpg": f"{name}.png" for name in names}
    # With splits that are stated, a tree of the training images alone will do, as for folders.
    shutil.rmtree(tmp_path / "masks/test")
    both = masks_of(tmp_path / "list.csv", tmp_path / "masks", val=None)
    assert both["train"].tree is not None and both["val"].tree is None


def test_an_image_in_no_folder_has_its_mask_in_none(tmp_path: Path) -> None:
    for name in ("test/1", "zz"):
        save(photo(len(name)), tmp_path / f"set/{name}.jpg")
        save(HALF, tmp_path / f"masks/{name}.png")
    (masks,) = masks_of(tmp_path / "set", tmp_path / "masks").values()
    assert wanted(masks, tmp_path / "masks") == {"test/1.jpg": "test/1.png", "zz.jpg": "zz.png"}


def test_a_made_tree_of_other_classes_is_refused_for_a_class_called_test(tmp_path: Path) -> None:
    for name in ("other/cat/1", "other/dog/1", "set/test/1", "set/zoo/1"):
        save(photo(len(name)), tmp_path / f"{name}.jpg")
    make(tmp_path / "other", tmp_path / "masks", "--mask-method", "center")
    with pytest.raises(DataError, match=r"none of 2 images \(test/1\.jpg, .* has a mask file"):
        masks_of(tmp_path / "set", tmp_path / "masks")


def test_splits_in_capitals_go_with_a_tree_in_small_letters(tmp_path: Path) -> None:
    data, tree = image_folder(tmp_path / "set", train=2, val=1), tmp_path / "masks"
    for path in sorted(data.rglob("*.jpg")):
        save(np.full((4, 4), 255, np.uint8), tree / path.relative_to(data).with_suffix(".png"))
    (data / "train").rename(data / "Train")
    (data / "val").rename(data / "VAL")
    masks = masks_of(data, tree, val=None)
    assert wanted(masks["train"], tree)["Train/class1/0.jpg"] == "train/class1/0.png"
    assert wanted(masks["val"], tree)["VAL/class1/0.jpg"] == "val/class1/0.png"
    shutil.rmtree(tree / "val")
    assert masks_of(data, tree, val=None)["val"].tree is None
    (tree / "train/class0").rename(tree / "class0")
    shutil.rmtree(tree / "train")  # as in the published archives
    assert masks_of(data, tree, val=None)["train"].tree is not None
    with pytest.raises(DataError, match="lies among the images"):
        make(data, data / "Train" / "masks")
    make(data, data / "masks")  # beside the splits
    assert converted(data, tmp_path / "out", "--masks", str(data / "masks")).mask["fallbacks"] == 0
