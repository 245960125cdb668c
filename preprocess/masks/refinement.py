"""New targets for the next round: what the network and its teachers say together.

The network has averaged its teachers' errors over many images, the teachers look at one image's
colours: their mistakes differ, so their mean is better than either, and teaches the next round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from preprocess.masks.binary import binarize
from preprocess.masks.composites import Teaching
from preprocess.masks.learning import all_maps
from preprocess.masks.network import MaskNet, agreed
from preprocess.masks.outline import centred, resized
from preprocess.masks.score import iou

BASE, SURE, LEAST_TRUST = 0.4, 0.85, 0.05
"""IoU of network and teachers at which an image starts to count, counts in full, and the rest."""


def refresh(
    net: MaskNet, teaching: Teaching, *, votes: npt.NDArray[np.uint8], bfloat16: bool
) -> Teaching:
    """Return the next round's targets from the last round's network and the committee.

    votes: (N, S/2, S/2) uint8 shares of the committee; where network and votes are far apart, an
    image is trusted less.
    """
    maps = all_maps(net, teaching, bfloat16=bfloat16)
    targets = np.empty_like(teaching.targets)
    trust = np.empty_like(teaching.trust)
    for index, (soft, share) in enumerate(zip(maps, votes, strict=True)):
        taught = teaching.opinions[index].mean(axis=0, dtype=np.float32) / 255
        best = agreed(teaching.images[index], soft, taught)
        targets[index] = np.rint(255 * resized(centred(best), targets.shape[1]))
        mask, stand_in = binarize(soft)
        trust[index] = 0.0 if stand_in else iou(mask, share > 127)
    trust = np.clip((trust - BASE) / (SURE - BASE), LEAST_TRUST, 1)
    return replace(teaching, targets=targets, trust=trust)
