"""Masks: one rule from map to mask, a heuristic that beats the centre, and trees of mask files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from harl_fast.errors import DataError
from preprocess.images.arrays import Mask
from preprocess.masks import MASK_METHODS, find_mask
from preprocess.masks.heuristic.binary import (
    binarize,
    centre_ellipse,
    drop_specks,
    fill_holes,
    otsu_level,
)
from preprocess.masks.heuristic.method import heuristic_map
from preprocess.masks.sources import open_tree
from preprocess.masks.tree import MaskTree
from preprocess.sources import Split
from tests.preprocess.support import demo_image, photo


def disc(side: int, radius: float) -> Mask:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.hypot(x, y) <= radius


def overlap(mask: Mask, truth: Mask) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def test_otsu_splits_two_levels_between_them() -> None:
    soft = np.where(disc(64, 20), 0.8, 0.2).astype(np.float32)
    assert 0.2 < otsu_level(soft) < 0.8
    mask, stand_in = binarize(soft)
    assert not stand_in
    np.testing.assert_array_equal(mask, disc(64, 20))


def test_specks_go_and_holes_fill() -> None:
    truth = disc(64, 20)
    dirty = truth & ~disc(64, 5)
    dirty[2:4, 2:4] = True
    np.testing.assert_array_equal(fill_holes(drop_specks(dirty)), truth)
    open_bay = truth.copy()
    open_bay[32:, 30:34] = False  # reaches the outside, so it is no hole
    np.testing.assert_array_equal(fill_holes(open_bay), open_bay)


def test_the_mask_of_a_map_is_cleaned() -> None:
    soft = np.where(disc(64, 20) & ~disc(64, 5), 0.8, 0.2).astype(np.float32)
    soft[2:4, 2:4] = 0.9
    np.testing.assert_array_equal(binarize(soft)[0], disc(64, 20))


def test_two_large_pieces_both_stay() -> None:
    two = np.zeros((64, 64), np.bool_)
    two[10:30, 10:30] = two[40:50, 40:50] = True
    np.testing.assert_array_equal(drop_specks(two), two)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_map_without_contrast_gets_the_stand_in(level: float) -> None:
    mask, stand_in = binarize(np.full((64, 64), level, np.float32))
    assert stand_in
    np.testing.assert_array_equal(mask, centre_ellipse(64))
    assert mask.mean() == pytest.approx(np.pi * 0.35**2, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (200, 2)])
def test_thin_images_get_a_mask(shape: tuple[int, int]) -> None:
    mask, _ = find_mask(np.full((*shape, 3), 90, np.uint8), "heuristic")
    assert mask.shape == (128, 128) and mask.any()


def test_the_heuristic_beats_the_centre_and_refinement_beats_none() -> None:
    scores: dict[str, list[float]] = {"heuristic": [], "contrast": [], "center": []}
    for index in range(40):
        drawn = demo_image(index, seed=5, side=128)
        masks = {name: find_mask(drawn.image, name)[0] for name in ("heuristic", "center")}
        masks["contrast"], _ = binarize(heuristic_map(drawn.image, rounds=0))
        for name, mask in masks.items():
            scores[name].append(
                overlap(cv2.resize(mask.astype(np.uint8), (128, 128)) > 0, drawn.mask)
            )
    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    # Measured over these 40 images: 0.86, 0.83 and 0.41.
    assert mean["heuristic"] > mean["contrast"] + 0.02, mean
    assert mean["contrast"] > mean["center"] + 0.2, mean


def test_the_patterns_do_not_look_at_the_image() -> None:
    masks = {
        name: find_mask(photo(2), name) for name, method in MASK_METHODS.items() if method.fixed
    }
    assert masks.keys() == {"center", "full"}
    assert masks["full"][0].all() and not masks["full"][1]
    assert 0.1 < masks["center"][0].mean() < 0.6 and masks["center"][0][32, 32]


def opened(tree: Path, folder: str, path: str) -> MaskTree | None:
    """Return what a tree has for a split whose folder holds one image."""
    split = Split([f"{folder}/{path}"], [0], folder=folder)
    return open_tree(tree, split, [path.partition("/")[0]], names=split.names)


def test_mask_files_lie_beside_the_images_names(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    tree = opened(tmp_path, "train", "a/1.jpg")
    assert tree is not None
    assert tree.path("train/a/deep/1.b.JPEG") == tmp_path / "train/a/deep/1.b.png"
    assert opened(tmp_path, "val", "a/1.jpg") is None


def test_a_tree_of_classes_alone_stands_for_the_training_images(tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir()
    tree = opened(tmp_path, "train", "n01440764/1.JPEG")
    assert tree is not None
    assert tree.path("train/n01440764/1.JPEG") == tmp_path / "n01440764/1.png"
    with pytest.raises(DataError, match=r"neither train/ nor class folders.*n2"):
        opened(tmp_path, "train", "n2/1.JPEG")
    with pytest.raises(DataError, match="is no folder"):
        opened(tmp_path / "none", "train", "n2/1.JPEG")
