"""Masks lie under their images' names: each image's own, whatever the names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.errors import DataError
from preprocess import beton
from preprocess.masks import parse_spec, tree
from preprocess.masks.sources import open_masks
from preprocess.sources import Split
from tests.preprocess.support import image_folder, photo, save
from tests.preprocess.trees import content, converted, make, replaced


def test_images_whose_names_differ_by_the_suffix_have_masks_of_their_own(tmp_path: Path) -> None:
    data, masks = image_folder(tmp_path / "set"), tmp_path / "masks"
    for number, name in enumerate(("0.png", "0.bmp", "x.jpg", "x.jpg.png", "caf\udce9.jpg")):
        save(photo(300 + number), data / "train/class1" / name)
    make(data, masks)
    there = content(masks / "train/class1")
    assert {"0.jpg", "0.png", "0.bmp", "x", "x.jpg.png", "caf\udce9", "1"} <= there.keys()
    direct = converted(data, tmp_path / "direct")
    manifest = converted(data, tmp_path / "out", "--masks", str(masks))
    assert manifest.beton_sha256 == direct.beton_sha256 and manifest.mask["fallbacks"] == 0


def test_a_mask_of_your_own_is_no_second_images_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks = image_folder(tmp_path / "set", val=0), tmp_path / "masks"
    for kind in (0, 1):
        for path in sorted((data / f"train/class{kind}").iterdir()):
            own = masks / f"train/class{kind}/{path.stem}.png"
            save(np.full(Image.open(path).size[::-1], 255, np.uint8), own)
    save(photo(300), data / "train/class1/0.png")
    manifest = converted(data, tmp_path / "shared", "--masks", str(masks))
    assert manifest.mask["fallbacks"] == 2
    shown = capsys.readouterr().out
    assert f"the one of train/class1/0.jpg {masks}/train/class1/0.jpg.png" in shown
    assert replaced(tmp_path / "shared").keys() == {"train/class1/0.jpg", "train/class1/0.png"}
    shutil.copy(masks / "train/class1/0.png", masks / "train/class1/0.jpg.png")
    save(np.full((photo(300).shape[:2]), 255, np.uint8), masks / "train/class1/0.png.png")
    manifest = converted(data, tmp_path / "own", "--masks", str(masks))
    assert manifest.mask["fallbacks"] == 0 and manifest.mask["full_share"] == 1.0
    assert "have the stem of another one" not in capsys.readouterr().out


def test_an_edited_mask_that_an_image_of_its_stem_displaces_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks = image_folder(tmp_path / "set", val=0), tmp_path / "masks"
    make(data, masks, "--val", "0")
    own = masks / "train/class1/0.png"
    save(np.full(photo(1).shape[:2], 255, np.uint8), own)
    save(photo(300), data / "train/class1/0.png")
    save(photo(301), data / "train/class1/1.png")  # whose stem has a made mask
    told = (
        f"WARNING: 1 masks of your own serve no image, as their stems are those of several by now: "
        f"if {own} is of train/class1/0.jpg, call it train/class1/0.jpg.png"
    )
    capsys.readouterr()
    make(data, masks, "--val", "0")
    assert told in capsys.readouterr().out.splitlines() and own.exists()
    converted(data, tmp_path / "out", "--masks", str(masks), "--val", "0")
    assert told in capsys.readouterr().out.splitlines()
    own.rename(masks / "train/class1/0.jpg.png")
    make(data, masks, "--val", "0")
    manifest = converted(data, tmp_path / "out", "--masks", str(masks), "--val", "0")
    assert manifest.mask["edited"] == 1
    assert "WARNING" not in capsys.readouterr().out


def test_a_mask_is_no_image_of_another_split_held_out_of_one_folder(tmp_path: Path) -> None:
    data, masks = tmp_path / "set", tmp_path / "masks"
    save(photo(1), data / "a/1.jpg")
    save(photo(2), data / "a/1.png")
    both = tree.contested(["a/1.jpg", "a/1.png"])
    assert both == {"a/1.jpg", "a/1.png"}
    save(np.full(photo(1).shape[:2], 255, np.uint8), masks / "a/1.png")
    split = Split(["a/1.jpg"], [0], root=data)
    with pytest.raises(DataError, match=r"it should be .*a/1\.jpg\.png"):
        open_masks(
            split, ["a"], method=parse_spec("full"), given=masks, names=["a/1.jpg", "a/1.png"]
        )


def test_names_as_long_as_a_file_system_takes_have_masks_or_are_refused_first(
    tmp_path: Path,
) -> None:
    data, masks = image_folder(tmp_path / "set", train=2), tmp_path / "masks"
    long = "x" * 251
    save(photo(300), data / f"train/class1/{long}.jpg")
    make(data, masks)
    assert long in content(masks / "train/class1")
    assert converted(data, tmp_path / "out", "--masks", str(masks)).mask["fallbacks"] == 0
    save(photo(301), data / f"train/class1/{long}.png")
    with pytest.raises(DataError, match=r"x\.(jpg|png) has no place .* names this long: rename it"):
        make(data, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert converted(data, tmp_path / "out", "--masks", str(masks)).mask["fallbacks"] == 2


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("train/a/../../../x.jpg", "/x.jpg"):
        with pytest.raises(DataError, match="has no place in"):
            tree.MaskTree(tmp_path, info={}).check([name])


def test_masks_whose_names_have_another_unicode_form_are_said(tmp_path: Path) -> None:
    for name in ("a", "caf\u00e9"):
        save(photo(1), tmp_path / "in" / "train" / name / "1.jpg")
    for name in ("a", "cafe\u0301"):
        save(np.eye(48, 64, dtype=np.uint8), tmp_path / "masks" / "train" / name / "1.png")
    command = ["--data", str(tmp_path / "in"), "--masks", str(tmp_path / "masks"), "--val", "0"]
    with pytest.raises(
        DataError, match=r"has 'cafe\\u0301/1.png', .* need 'caf\\xe9/1.png'.*convmv"
    ):
        beton.main([*command, "--out", str(tmp_path / "out")])
