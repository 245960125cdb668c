"""The network's targets: first what the ensemble votes, then what network and ensemble agree on.

The network has averaged its teachers' errors over many images, the teachers look at one image's
colours: their mistakes differ, so their mean is better than either, and teaches the next round.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import cv2
import numpy as np
import torch

from preprocess.images.arrays import Map, Pixels
from preprocess.masks.heuristic.binary import binarize, centred, resized
from preprocess.masks.selftrained.composites import TrainingSet
from preprocess.masks.selftrained.dataset import Dataset
from preprocess.masks.selftrained.network import BATCH, MaskNet, agreed, predict
from preprocess.masks.selftrained.score import iou

VOTE_TRUST = 0.6, 0.95
"""Agreement of the ensemble at which an image starts to count, and at which it counts in full."""
NETWORK_TRUST = 0.4, 0.85
"""The same for the IoU of the network's mask with the vote."""
LEAST_TRUST = 0.05
"""Even an image without agreement is seen now and then, as a background for objects."""


def _trust(agreement: Map, ends: tuple[float, float]) -> Map:
    start, full = ends
    trust: Map = np.clip((agreement - start) / (full - start), LEAST_TRUST, 1).astype(np.float32)
    return trust


def first_targets(dataset: Dataset) -> TrainingSet:
    """Return the first round's targets: the votes, trusted as far as the members agree."""
    side = dataset.images.shape[1] // 2
    shares = _halves(dataset.shares, side)
    maps = _halves(dataset.opinions.reshape(-1, *dataset.opinions.shape[2:]), side)
    trust = _trust(dataset.agreement, VOTE_TRUST)
    maps = maps.reshape(len(shares), -1, side, side)
    return TrainingSet(dataset.images, shares, maps, trust)


def _halves(planes: Pixels, side: int) -> Pixels:
    size = (side, side)
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes])


def refresh(
    net: MaskNet, training_set: TrainingSet, *, votes: Pixels, bfloat16: bool
) -> TrainingSet:
    """Return the next round's targets from the last round's network and the ensemble.

    votes: (N, S/2, S/2) uint8 shares of the ensemble; where network and votes are far apart, an
    image is trusted less.
    """
    maps = all_maps(net, training_set, bfloat16=bfloat16)
    targets = np.empty_like(training_set.targets)
    agreement = np.empty_like(training_set.trust)
    for index, (soft, share) in enumerate(zip(maps, votes, strict=True)):
        taught = training_set.opinions[index].mean(axis=0, dtype=np.float32) / 255
        best = agreed(training_set.images[index], soft, taught)
        targets[index] = np.rint(255 * resized(centred(best), targets.shape[1]))
        mask, stand_in = binarize(soft)
        agreement[index] = 0.0 if stand_in else iou(mask, share > 127)
    trust = _trust(agreement, NETWORK_TRUST)
    return replace(training_set, targets=targets, trust=trust)


def all_maps(net: MaskNet, training_set: TrainingSet, *, bfloat16: bool) -> Map:
    """Return the network's (N, S/2, S/2) maps of all images, each the mean with its mirror's."""
    folded = copy.deepcopy(net).fold().to(memory_format=torch.channels_last)
    maps = []
    for start in range(0, len(training_set.images), BATCH):
        squares = training_set.images[start : start + BATCH]
        heard = training_set.opinions[start : start + BATCH].astype(np.float32) / np.float32(255)
        plain = predict(folded, squares, heard, bfloat16=bfloat16)
        mirrored = predict(folded, squares[:, :, ::-1], heard[..., ::-1], bfloat16=bfloat16)
        maps.append((plain + mirrored[..., ::-1]) / 2)
    return np.concatenate(maps)
