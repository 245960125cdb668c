"""The figures by which the masks of a method are compared with true ones."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.images.arrays import Map, Mask
from preprocess.masks.selftrained.score import coverage, iou, soft_jaccard, stretch

BETA2 = 0.3
"""Weight of recall against precision in F-beta, usual for saliency (Achanta et al., CVPR 2009)."""


@dataclass(frozen=True)
class Score:
    """The figures of one mask, or their means over many; all in [0, 1]."""

    iou: float
    """Intersection over union of the binary masks, at the truth's size."""
    fbeta: float
    """(1 + b) P R / (b P + R) of the binary mask, with b = `BETA2`."""
    mae: float
    """Mean absolute difference of soft map and truth, at the truth's size."""
    cells: float
    """Sum of min over sum of max of the two masks' coverages of `CELLS` x `CELLS` cells."""


def score(mask: Mask, soft: Map, truth: Mask) -> Score:
    """Return the figures of a mask and its soft map against the truth.

    mask: (S, S) bool and soft: (S', S') float32 in [0, 1], both over the whole image, of any
    size; truth: (H, W) bool at least `CELLS` pixels per side.
    """
    height, width = truth.shape
    at_truth = stretch(mask, height, width)
    how = cv2.INTER_AREA if width < soft.shape[1] else cv2.INTER_LINEAR
    smooth = cv2.resize(soft, (width, height), interpolation=how)
    return Score(
        iou(at_truth, truth),
        fbeta(at_truth, truth),
        float(np.abs(smooth.astype(np.float64) - truth).mean()),
        soft_jaccard(coverage(mask), coverage(truth)),
    )


def fbeta(mask: Mask, truth: Mask) -> float:
    """Return F-beta of two masks of one size; 1 if both are empty, 0 if they only miss."""
    hits = float((mask & truth).sum())
    # The definition with precision = hits / mask and recall = hits / truth, multiplied out.
    weight = BETA2 * float(truth.sum()) + float(mask.sum())
    return (1 + BETA2) * hits / weight if weight else 1.0
