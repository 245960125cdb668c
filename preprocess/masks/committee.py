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

VERSION = 2
"""Raise it when a member changes: cached votes of another version are not used."""
VOTE_SIDE = 64


class Vote(NamedTuple):
    """What the committee says about one image."""

    share: npt.NDArray[np.uint8]
    """(64, 64): share of the members that call a cell foreground; 255 is all."""
    maps: npt.NDArray[np.uint8]
    """(M, 64, 64): each member's own map, 255 for certain foreground."""
    agreement: float
    """Mean IoU of the members' masks with the vote's, 0 to 1; 0 if no member found anything."""


def brightened(rgb: Pixels) -> Pixels:
    """Return pixels under gamma 1/2, which opens the shadows."""
    return np.asarray(_GAMMA[rgb], np.uint8)


def in_hsv(rgb: Pixels) -> Pixels:
    """Return hue, saturation and value, to be taken for colours: hue then counts far more."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV_FULL), np.uint8)


def in_hls(rgb: Pixels) -> Pixels:
    """Return hue, lightness and saturation, to be taken for colours."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HLS_FULL), np.uint8)


def vivid(rgb: Pixels) -> Pixels:
    """Return pixels at twice the distance from their grey."""
    colours = rgb.astype(np.int16)
    grey = colours.mean(axis=2, keepdims=True)
    return np.clip(2 * colours - grey, 0, 255).astype(np.uint8)


_GAMMA = np.rint(255 * np.sqrt(np.arange(256) / 255)).astype(np.uint8)


MEMBERS: dict[str, Callable[[Pixels], Pixels]] = {
    "plain": lambda rgb: rgb,
    "brightened": brightened,
    "in_hsv": in_hsv,
    "in_hls": in_hls,
    "vivid": vivid,
}
"""What each member sees of an image."""


def opinions(rgb: Pixels) -> list[Map]:
    """Return each member's (64, 64) map of (H, W, 3) uint8 pixels."""
    size = (VOTE_SIDE, VOTE_SIDE)  # as the heuristic's own first step, once for all
    small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    return [heuristic_map(change(small)) for change in MEMBERS.values()]


def vote(rgb: Pixels) -> Vote:
    """Return the committee's vote on (H, W, 3) uint8 pixels."""
    masks = []
    softs = opinions(rgb)
    maps = np.rint(255 * np.stack(softs)).astype(np.uint8)
    for soft in softs:
        mask, stand_in = binarize(soft)
        if not stand_in:
            masks.append(to_vote_side(mask))
    if not masks:
        return Vote(np.zeros((VOTE_SIDE, VOTE_SIDE), np.uint8), maps, 0.0)
    share = np.mean(np.stack(masks), axis=0)
    together = share > 0.5
    agreement = float(np.mean([iou(mask > 0.5, together) for mask in masks]))
    # A member that had to pass is a doubt about the image, too.
    agreement *= len(masks) / len(MEMBERS)
    return Vote(np.rint(255 * share).astype(np.uint8), maps, agreement)


def to_vote_side(mask: Mask) -> Map:
    """Return a mask as (64, 64) shares in [0, 1]."""
    size = (VOTE_SIDE, VOTE_SIDE)
    values = mask.astype(np.float32)
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def iou(first: Mask, second: Mask) -> float:
    """Return intersection over union; 0 if both are empty."""
    return float((first & second).sum() / max((first | second).sum(), 1))
