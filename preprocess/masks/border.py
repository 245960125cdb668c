"""Cheap maps that tell the network how each place differs from the image's border.

A small network sees colours near a place, but hardly "unlike the background", which is what makes
an object. So it is told: the Mahalanobis distance to the colours along each side, and the minimum
barrier distance to the border (Zhang et al., ICCV 2015), both in Lab.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.masks.cues import barrier_distance, side_distances

COUNT = 6
"""Cues of a place: distance to each side, the second smallest of those, the barrier distance."""
STRIP = 0.08
"""Width of the strip along a side, in sides."""
REACH = 8.0
"""Distances of this many deviations become 1/2: beyond, more says little more."""


BARRIER_REACH = 40.0
"""The barrier distance, summed over the channels, that becomes 1/2."""


def border_cues(rgb: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float32]:
    """Return the (`COUNT`, side, side) float32 cues, in [0, 1], of (H, W, 3) uint8 pixels."""
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).astype(np.float32)
    sides = side_distances(lab, lab.reshape(-1, 3), max(2, round(STRIP * side)))
    cues = np.empty((COUNT, side, side), np.float32)
    cues[:4] = sides.T.reshape(4, side, side)
    cues[4] = np.sort(cues[:4], axis=0)[1]  # one side may be covered by the object
    cues[5] = barrier_distance(np.ascontiguousarray(np.moveaxis(lab, 2, 0)))
    reach = np.array([REACH] * 5 + [BARRIER_REACH], np.float32)[:, None, None]
    return cues / (cues + reach)
