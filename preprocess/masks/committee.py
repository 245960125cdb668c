"""Noisy teachers for the mask network: many cheap masks of an image, their vote, their agreement.

None of them knows a label. Each alone is wrong in its own way; where they agree they are mostly
right, and where they do not the network is told to look away (DeepUSPS, Nguyen et al., NeurIPS
2019, trains on several handcrafted methods for the same reason).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.masks.binary import Mask, binarize
from preprocess.masks.heuristic import heuristic_map

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Member = Callable[[Pixels], tuple[Mask, bool]]
"""Pixels to a mask, and whether the stand-in serves."""

VERSION = 1
"""Raise it when a member changes: cached votes of another version are not used."""
VOTE_SIDE = 64


class Vote(NamedTuple):
    """What the committee says about one image."""

    share: npt.NDArray[np.uint8]
    """(64, 64): share of the members that call a cell foreground; 255 is all."""
    agreement: float
    """Mean IoU of the members' masks with the vote's, 0 to 1; 0 if no member found anything."""


def brightened(rgb: Pixels) -> Pixels:
    """Return pixels under gamma 1/2, which opens the shadows."""
    return np.asarray(_GAMMA[rgb], np.uint8)


def in_hsv(rgb: Pixels) -> Pixels:
    """Return hue, saturation and value, to be taken for colours: hue then counts far more."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV_FULL), np.uint8)


_GAMMA = np.rint(255 * np.sqrt(np.arange(256) / 255)).astype(np.uint8)


def member(change: Callable[[Pixels], Pixels] | None = None, **settings: float) -> Member:
    """Return the heuristic with other settings, on changed pixels."""

    def mask_of(rgb: Pixels) -> tuple[Mask, bool]:
        return binarize(heuristic_map(rgb if change is None else change(rgb), **settings))

    return mask_of


MEMBERS: dict[str, Member] = {
    "plain": member(),
    "brightened": member(brightened),
    "in_hsv": member(in_hsv),
    "smoothed": member(sigma=1.0),
    "coarse": member(min_size=16),
}


def grabcut(rgb: Pixels, labels: npt.NDArray[np.uint8], *, rounds: int) -> Mask:
    """Return GrabCut's mask at the side of ``labels``, (S, S) of OpenCV's four GC_ values."""
    side = len(labels)
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
    labels = labels.copy()
    certain = labels & 1  # GC_FGD is 1, GC_PR_FGD 3; the two backgrounds are even
    if not certain.any() or certain.all():
        return np.asarray(certain, np.bool_)  # one colour model would have no pixel
    cv2.setRNGSeed(0)  # its k-means starts at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, labels, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    return np.asarray(labels & 1, np.bool_)


def vote(rgb: Pixels) -> Vote:
    """Return the committee's vote on (H, W, 3) uint8 pixels."""
    masks = []
    for mask_of in MEMBERS.values():
        mask, stand_in = mask_of(rgb)
        if not stand_in:
            masks.append(to_vote_side(mask))
    if not masks:
        return Vote(np.zeros((VOTE_SIDE, VOTE_SIDE), np.uint8), 0.0)
    share = np.mean(np.stack(masks), axis=0)
    together = share > 0.5
    agreement = float(np.mean([iou(mask > 0.5, together) for mask in masks]))
    # A member that had to pass is a doubt about the image, too.
    agreement *= len(masks) / len(MEMBERS)
    return Vote(np.rint(255 * share).astype(np.uint8), agreement)


def to_vote_side(mask: Mask) -> Map:
    """Return a mask as (64, 64) shares in [0, 1]."""
    size = (VOTE_SIDE, VOTE_SIDE)
    values = mask.astype(np.float32)
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def iou(first: Mask, second: Mask) -> float:
    """Return intersection over union; 0 if both are empty."""
    return float((first & second).sum() / max((first | second).sum(), 1))
