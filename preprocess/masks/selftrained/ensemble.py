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

from preprocess.images.arrays import Map, Pixels
from preprocess.masks.heuristic.binary import binarize, resized
from preprocess.masks.heuristic.method import FINE, heuristic_map
from preprocess.masks.selftrained.score import iou

VERSION = 4
"""Raise it when a member changes: cached votes of another version are not used."""
VOTE_SIDE = 64


class Vote(NamedTuple):
    """What the ensemble says about one image."""

    share: Pixels
    """(64, 64): share of the members that call a cell foreground; 255 is all."""
    maps: Pixels
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
    return np.asarray(np.clip(2 * colours - grey, 0, 255), np.uint8)


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
    small = cv2.resize(rgb, (FINE, FINE), interpolation=cv2.INTER_AREA)
    pixels = np.asarray(small, np.uint8)  # the heuristic's own first step, once for all
    return [resized(heuristic_map(change(pixels)), VOTE_SIDE) for change in MEMBERS.values()]


def vote(rgb: Pixels) -> Vote:
    """Return the ensemble's vote on (H, W, 3) uint8 pixels."""
    softs = opinions(rgb)
    maps = np.rint(255 * np.stack(softs)).astype(np.uint8)
    masks = [mask for mask, missing in map(binarize, softs) if not missing]
    if not masks:
        return Vote(np.zeros((VOTE_SIDE, VOTE_SIDE), np.uint8), maps, 0.0)
    share = np.mean(masks, axis=0)
    agreement = float(np.mean([iou(mask, share > 0.5) for mask in masks]))
    # A member that had to pass is a doubt about the image, too.
    agreement *= len(masks) / len(MEMBERS)
    return Vote(np.rint(255 * share).astype(np.uint8), maps, agreement)
