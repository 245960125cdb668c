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

from preprocess.masks import METHODS
from preprocess.masks.binary import Mask, binarize
from preprocess.masks.network import Pixels

Map = npt.NDArray[np.float32]

VERSION = 1
"""Raise it when a member changes: cached votes of another version are not used."""
VOTE_SIDE = 64
GRABCUT_SIDE = 96
GRABCUT_MARGIN = 0.06
"""The GrabCut member's box leaves this share of each side out (88 % wide)."""
GRABCUT_ROUNDS = 3


class Vote(NamedTuple):
    """What the committee says about one image."""

    share: npt.NDArray[np.uint8]
    """(64, 64): share of the members, by weight, that call a cell foreground; 255 is all."""
    agreement: float
    """Mean IoU of the members' masks with the vote's, 0 to 1; 0 if no member found anything."""


def heuristic_mask(rgb: Pixels) -> tuple[Mask, bool]:
    """Return the default heuristic's mask, and whether the stand-in serves."""
    method = METHODS["heuristic"]
    return binarize(method.function(rgb, **method.parameters))


def in_hsv(rgb: Pixels) -> tuple[Mask, bool]:
    """Return the heuristic's mask of hue, saturation and value taken for colours."""
    return heuristic_mask(np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV_FULL), np.uint8))


def brightened(rgb: Pixels) -> tuple[Mask, bool]:
    """Return the heuristic's mask under gamma 1/2, which opens the shadows."""
    return heuristic_mask(_GAMMA[rgb])


def smoothed(rgb: Pixels) -> tuple[Mask, bool]:
    """Return the heuristic's mask of the image under a Gaussian of 2 % of its side."""
    sigma = 0.02 * min(rgb.shape[:2])
    return heuristic_mask(np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma), np.uint8))


def boxed_grabcut(rgb: Pixels) -> tuple[Mask, bool]:
    """Return GrabCut's mask from a centred box (Rother et al., SIGGRAPH 2004)."""
    margin = round(GRABCUT_MARGIN * GRABCUT_SIDE)
    labels = np.full((GRABCUT_SIDE, GRABCUT_SIDE), cv2.GC_BGD, np.uint8)
    labels[margin:-margin, margin:-margin] = cv2.GC_PR_FGD
    return binarize(grabcut(rgb, labels, rounds=GRABCUT_ROUNDS).astype(np.float32))


MEMBERS: dict[str, tuple[Callable[[Pixels], tuple[Mask, bool]], float]] = {
    "heuristic": (heuristic_mask, 1.0),
    "in_hsv": (in_hsv, 1.0),
    "brightened": (brightened, 1.0),
    "smoothed": (smoothed, 1.0),
    "boxed_grabcut": (boxed_grabcut, 1.0),
}
"""Name to function and weight."""

_GAMMA = np.rint(255 * np.sqrt(np.arange(256) / 255)).astype(np.uint8)


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
    masks, weights = [], []
    for function, weight in MEMBERS.values():
        mask, stand_in = function(rgb)
        if not stand_in:
            masks.append(to_vote_side(mask))
            weights.append(weight)
    if not masks:
        return Vote(np.zeros((VOTE_SIDE, VOTE_SIDE), np.uint8), 0.0)
    share = np.average(np.stack(masks), axis=0, weights=weights)
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
