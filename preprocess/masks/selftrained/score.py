"""How well masks agree with true masks, or divide an image without one."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.images.arrays import Mask, Pixels

CELLS = 7
"""Side of the last feature map of a ResNet at 224 px."""


def stretch(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask over the whole image at another size: each pixel takes what its centre sees."""
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    result: Mask = mask[rows[:, None], columns]
    return result


def iou(mask: Mask, truth: Mask) -> float:
    """Return intersection over union of two masks of one size; 1 if both are empty."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum()) / union if union else 1.0


def coverage(mask: Mask) -> npt.NDArray[np.float64]:
    """Return the (c, c) foreground shares of a mask with sides of at least c = `CELLS`."""
    rows = _bands(mask.astype(np.float64))
    return _bands(np.ascontiguousarray(rows.T)).T


def soft_jaccard(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Return sum of min over sum of max of two grids of shares; 1 if both are zero."""
    most = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / most if most else 1.0


def _bands(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the means of `CELLS` equal bands of rows; a row that an edge cuts counts in part."""
    edges = np.arange(CELLS + 1) * (len(values) / CELLS)
    running = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    whole = np.minimum(edges.astype(np.int64), len(values) - 1)
    at_edges = running[whole] + (edges - whole)[:, None] * values[whole]
    return np.asarray(np.diff(at_edges, axis=0) * (CELLS / len(values)), np.float64)


def colour_separation(image: Pixels, mask: Mask) -> float:
    """Return how unlike the colours inside and outside a mask are: 0 alike, 1 nothing shared.

    No truth is needed. image: (H, W, 3) uint8; mask: (S, S) bool over it. One minus the
    intersection of the two colour histograms (Swain and Ballard, IJCV 1991), taken at 64 x 64
    pixels with 16 levels per channel, each smoothed over 3 levels. 0 without two sides to compare.
    """
    side, bins = 64, 16
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    inside = stretch(mask, side, side)
    if inside.all() or not inside.any():
        return 0.0
    words = (small // (256 // bins)).astype(np.int64) @ np.array([bins * bins, bins, 1])
    shared = np.minimum(*(_smooth(words[part], bins) for part in (inside, ~inside)))
    return 1.0 - float(shared.sum())


def _smooth(words: npt.NDArray[np.int64], bins: int) -> npt.NDArray[np.float64]:
    """Return the share of each colour word, averaged over 3 levels of each channel."""
    counts = np.bincount(words, minlength=bins**3) / words.size
    for _ in range(3):  # a turn of the axes after each: all three in the end
        rows = counts.reshape(bins, bins * bins)
        padded = np.pad(rows, ((1, 1), (0, 0)), mode="edge")
        counts = ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).T
    return counts.reshape(-1)
