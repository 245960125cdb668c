"""The masks' figures against scikit-learn and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import fbeta_score, jaccard_score, mean_absolute_error

from benchmarks.mask_score import BETA2, fbeta, score
from preprocess.masks.selftrained.score import coverage, iou, soft_jaccard, stretch


@pytest.mark.parametrize(("share", "true_share"), [(0.1, 0.4), (0.5, 0.5), (0.9, 0.02)])
def test_overlap_and_fbeta_agree_with_scikit_learn(share: float, true_share: float) -> None:
    rng = np.random.default_rng(round(100 * share))
    mask, truth = rng.random((40, 31)) < share, rng.random((40, 31)) < true_share
    flat = truth.ravel(), mask.ravel()
    assert iou(mask, truth) == pytest.approx(jaccard_score(*flat))
    assert fbeta(mask, truth) == pytest.approx(fbeta_score(*flat, beta=BETA2**0.5))


def test_empty_and_disjoint_masks() -> None:
    none, every = np.zeros((9, 9), np.bool_), np.ones((9, 9), np.bool_)
    assert iou(none, none) == fbeta(none, none) == 1.0
    assert iou(none, every) == fbeta(none, every) == fbeta(every, none) == 0.0
    assert soft_jaccard(coverage(none), coverage(none)) == 1.0
    assert soft_jaccard(coverage(none), coverage(every)) == 0.0


@pytest.mark.parametrize("shape", [(64, 64), (35, 49), (197, 251), (7, 300)])
def test_coverage_is_the_mean_of_a_picture_repeated_to_whole_cells(shape: tuple[int, int]) -> None:
    """Every pixel becomes 7 x 7 equal ones: no edge of a cell cuts a pixel any more."""
    mask = np.random.default_rng(1).random(shape) < 0.3
    fine = mask.repeat(7, axis=0).repeat(7, axis=1).astype(np.float64)
    expected = fine.reshape(7, shape[0], 7, shape[1]).mean(axis=(1, 3))
    np.testing.assert_allclose(coverage(mask), expected, atol=1e-12)


def test_soft_jaccard_by_hand() -> None:
    first, second = np.array([[0.5, 0.0], [1.0, 0.2]]), np.array([[0.25, 0.0], [1.0, 0.8]])
    assert soft_jaccard(first, second) == pytest.approx((0.25 + 1 + 0.2) / (0.5 + 1 + 0.8))


def test_a_stretched_mask_covers_the_same_part_of_the_picture() -> None:
    mask = np.random.default_rng(2).random((6, 4)) < 0.5
    np.testing.assert_array_equal(stretch(mask, 18, 20), mask.repeat(3, axis=0).repeat(5, axis=1))
    centres_y, centres_x = (np.arange(50) + 0.5) * 6 / 50, (np.arange(31) + 0.5) * 4 / 31
    odd = stretch(mask, 50, 31)
    assert all(
        odd[y, x] == mask[int(centres_y[y]), int(centres_x[x])]
        for y in range(50)
        for x in range(31)
    )
    np.testing.assert_array_equal(stretch(stretch(mask, 18, 20), 6, 4), mask)


def test_the_whole_score_of_masks_smaller_than_the_truth() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((64, 96)) < 0.4
    soft = rng.random((64, 96)).astype(np.float32)
    mask = soft > 0.5
    found = score(mask, soft, truth)
    assert found.iou == pytest.approx(jaccard_score(truth.ravel(), mask.ravel()))
    assert found.mae == pytest.approx(mean_absolute_error(truth.ravel(), soft.ravel()), abs=1e-6)
    # A constant map stays constant at any size, a quarter of the sides sees the same blocks.
    blocks = np.random.default_rng(4).random((16, 24)) < 0.5
    large = blocks.repeat(4, axis=0).repeat(4, axis=1)
    small = score(blocks, np.full((16, 16), 0.25, np.float32), large)
    assert small.iou == small.fbeta == 1.0 and small.cells == pytest.approx(1.0)
    assert small.mae == pytest.approx(np.abs(0.25 - large).mean())
