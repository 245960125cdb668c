"""New targets from a network's own maps: GrabCut moves their outline to the image's edges."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from harl_fast.files import Progress
from preprocess.masks.binary import binarize
from preprocess.masks.committee import Map, grabcut, iou
from preprocess.masks.composites import Teaching
from preprocess.masks.learning import all_maps
from preprocess.masks.network import MaskNet, Pixels, native_bfloat16

SIDE = 64
ROUNDS = 2
SURE = 0.9
"""Cells whose probability is beyond this, or below the rest to 1, GrabCut may not change."""
LEAST_OVERLAP = 0.5
"""IoU of GrabCut's mask with the map's own below which it has failed."""
BASE, SURE_IOU, LEAST_TRUST = 0.5, 0.9, 0.05
"""Agreement of map and GrabCut at which an image starts to count, counts in full, and the rest."""


def sharpened(rgb: Pixels, soft: Map) -> npt.NDArray[np.bool_]:
    """Return the (64, 64) mask that GrabCut makes of an image and its (S, S) map.

    Where object and background share their colours GrabCut may swallow either: a mask with little
    of the map's own left is not taken.
    """
    small = cv2.resize(soft, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    mask, _ = binarize(small)
    labels = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[mask & (small > SURE)] = cv2.GC_FGD
    labels[~mask & (small < 1 - SURE)] = cv2.GC_BGD
    cut = grabcut(rgb, labels, rounds=ROUNDS)
    return cut if iou(cut, mask) >= LEAST_OVERLAP else mask


def refresh(net: MaskNet, teaching: Teaching, number: int) -> Teaching:
    """Return the targets of self-training round ``number`` from the last round's network.

    A target is the mean of the network's map and of its GrabCut, trust the two's agreement.
    """
    maps = all_maps(net, teaching.images, bfloat16=native_bfloat16())
    targets = np.empty_like(teaching.targets)
    trust = np.empty_like(teaching.trust)
    size = targets.shape[1:]
    progress = Progress(len(maps), label=f"targets of round {number + 1}")
    with progress:
        for index, (rgb, soft) in enumerate(zip(teaching.images, maps, strict=True)):
            mask = sharpened(rgb, soft)
            own, stand_in = binarize(cv2.resize(soft, (SIDE, SIDE)))
            belief = (cv2.resize(soft, size) + cv2.resize(mask.astype(np.float32), size)) / 2
            targets[index] = np.rint(255 * np.clip(belief, 0, 1))
            trust[index] = 0.0 if stand_in else iou(mask, own)
            progress.advance()
    trust = np.clip((trust - BASE) / (SURE_IOU - BASE), LEAST_TRUST, 1)
    return replace(teaching, targets=targets, trust=trust)
