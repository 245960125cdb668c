"""Controls: whose mask an image gets, which cells flip, all fixed by seed and position."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from harl_fast.data.container.fields import resize_mask
from harl_fast.errors import ConfigError, DataError
from preprocess.images.arrays import Mask
from preprocess.masks import find_mask, parse_spec
from preprocess.masks.controls import derangement, flip_cells
from preprocess.masks.runner import LazyImage, find_masks
from preprocess.masks.sources import MaskList, open_masks
from preprocess.sources import Split, folder_source
from tests.preprocess.support import image_folder, photo, save

COUNT = 6


@pytest.fixture(scope="module")
def split() -> Split:
    """Photos in memory."""
    names = [f"train/{index:06d}" for index in range(COUNT)]
    pixels = np.stack([photo(index) for index in range(COUNT)])
    return Split(names, [0, 1] * (COUNT // 2), pixels=pixels)


def masks_of(split: Split, text: str) -> list[Mask]:
    masks = open_masks(split, ["a", "b"], method=parse_spec(text), given=None)
    origins = [LazyImage(masks.request(row), side_px=512) for row in range(len(split.names))]
    return [found.mask for found in find_masks(origins, masks.methods)]


def own(split: Split) -> list[Mask]:
    assert split.pixels is not None
    return [find_mask(rgb, "heuristic")[0] for rgb in split.pixels]


@pytest.mark.parametrize("count", [2, 3, 7, 1000])
def test_nobody_keeps_the_own_mask_and_every_mask_is_used_once(count: int) -> None:
    partners = derangement(count, seed=0)
    assert sorted(partners) == list(range(count))
    assert (partners != np.arange(count)).all()
    np.testing.assert_array_equal(partners, derangement(count, seed=0))
    if count > 3:
        assert (partners != derangement(count, seed=1)).any()


def test_partners_are_spread_over_the_list() -> None:
    steps = (derangement(5000, seed=0) - np.arange(5000)) % 5000
    # A neighbour mostly has the same class: the partner must not be one more often than by chance.
    assert (steps == 1).sum() <= 8
    assert abs(steps.mean() / 5000 - 0.5) < 0.02  # 5 deviations of a uniform step


def test_shuffled_masks_are_the_partners(split: Split) -> None:
    partners, masks = derangement(COUNT, seed=4), own(split)
    for row, mask in enumerate(masks_of(split, "shuffled:seed=4")):
        np.testing.assert_array_equal(mask, masks[partners[row]])


def test_a_split_of_one_image_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="no other image's mask"):
        derangement(1, seed=0)


@pytest.mark.parametrize(("share", "changed"), [(0.0, False), (1.0, True)])
def test_no_cell_or_every_cell_flips(share: float, changed: bool) -> None:
    mask = np.random.default_rng(0).random((128, 128)) < 0.3
    flipped = flip_cells(mask, share=share, grid=7, seed=0, position=3)
    np.testing.assert_array_equal(flipped, mask ^ changed)


def test_cells_flip_whole_with_the_given_probability() -> None:
    counts = []
    for position in range(400):
        flipped = flip_cells(
            np.zeros((64, 64), np.bool_), share=0.3, grid=7, seed=1, position=position
        )
        edges = [round(row * 128 / 7) for row in range(8)]
        cells = [
            flipped[top:bottom, left:right]
            for top, bottom in itertools.pairwise(edges)
            for left, right in itertools.pairwise(edges)
        ]
        assert all(cell.all() or not cell.any() for cell in cells)
        counts.append(sum(bool(cell.any()) for cell in cells))
    draws = 400 * 49
    deviation = np.sqrt(0.3 * 0.7 / draws)
    assert abs(sum(counts) / draws - 0.3) < 4 * deviation
    # The variance of a binomial count: cells and images are independent.
    assert np.var(counts) == pytest.approx(49 * 0.3 * 0.7, rel=0.3)


def test_noise_changes_the_base_by_seed_and_position(split: Split) -> None:
    def flipped(mask: Mask, position: int) -> Mask:
        return flip_cells(mask, share=0.2, grid=5, seed=9, position=position)

    masks = own(split)
    for row, mask in enumerate(masks_of(split, "noise:0.2,seed=9,grid=5")):
        np.testing.assert_array_equal(mask, flipped(masks[row], row))
    partners = derangement(COUNT, seed=0)
    # Outside: the flips belong to the image that gets the mask; inside: to the mask's own.
    outside = masks_of(split, "noise:0.2,seed=9,grid=5,base=shuffled")
    inside = masks_of(split, "shuffled:base=(noise:0.2,seed=9,grid=5)")
    for row in range(COUNT):
        np.testing.assert_array_equal(outside[row], flipped(masks[partners[row]], row))
        np.testing.assert_array_equal(inside[row], flipped(masks[partners[row]], partners[row]))


def opened(root: Path, text: str, *, given: Path | None = None) -> MaskList:
    source = folder_source(root)
    return open_masks(source.splits["train"], source.classes, method=parse_spec(text), given=given)


def test_masks_among_the_images_are_refused(tmp_path: Path) -> None:
    """They would be samples, too."""
    root = image_folder(tmp_path / "set")
    save(np.zeros((48, 64), np.uint8), root / "train/class1/0.png")
    for folder in (root, root / "train"):
        with pytest.raises(DataError, match=rf"masks in {folder} lie among.*train/class1/0\.png"):
            opened(root, "full", given=folder)
    (tmp_path / "masks/train/class1").mkdir(parents=True)
    (root / "train/class1/0.png").rename(tmp_path / "masks/train/class1/0.png")
    assert opened(root, "full", given=tmp_path / "masks").tree is not None


def test_a_tree_can_be_the_base_and_what_it_lacks_falls_back(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    file = np.zeros((48, 64), np.uint8)
    file[:, :16] = 255
    save(file, tmp_path / "masks/train/class0/0.png")
    masks = opened(root, f"shuffled:base=png:{tmp_path}/masks")
    origins = [LazyImage(masks.request(row), side_px=512) for row in range(8)]
    found = find_masks(origins, masks.methods)
    first = int(np.flatnonzero(derangement(8, seed=0) == 0)[0])
    np.testing.assert_array_equal(resize_mask(found[first].mask, size=64)[:, :16], True)
    assert found[first].mask.mean() == 0.25 and not found[first].problem
    others = [one for row, one in enumerate(found) if row != first]
    assert all(one.problem.endswith("heuristic serves") for one in others)
    assert masks.final_facts(fallbacks=7)["supervision"] == "unknown"


def test_masks_that_are_given_come_first_and_the_method_is_their_fall_back(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    save(np.ones((48, 64), np.uint8), tmp_path / "masks/train/class0/0.png")
    masks = opened(root, "center", given=tmp_path / "masks")
    assert [spec.name for spec in masks.methods] == ["center", "heuristic"]
    assert masks.facts["fallback"]["method"] == "center"
    with pytest.raises(ConfigError, match=r"shuffled does not go with --masks.*base: \{png: "):
        opened(root, "shuffled", given=tmp_path / "masks")
