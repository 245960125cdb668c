"""Label-free foreground: colour contrast to the image's border, refined by colour models.

The chain, at 64 x 64 pixels in Lab:
1. contrast: minimum barrier distance to the border (Zhang et al., ICCV 2015, algorithm 1) plus
   the Mahalanobis distance to the colours of each side (ibid., section 4), times a centre prior;
2. refinement, as in GrabCut (Rother et al., SIGGRAPH 2004) but soft: colour histograms of
   foreground and background, their log ratio, and an edge-aware smoothing (guided filter, He et
   al., TPAMI 2013) in place of the graph cut, which costs ten times as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from numba import njit

from preprocess.masks.binary import otsu_level

Map = npt.NDArray[np.float32]

SIDE = 64
BINS = 16
CENTRE_SIGMA = 0.33
"""Standard deviation of the centre prior in image sides."""
SHARPNESS = 12.0
"""Slope that turns the contrast into a first probability, about its Otsu level."""
ANCHOR = 2.0
"""Weight of the first probability against the colour models, in nats at certainty."""
CONNECTED = 0.25
"""Share of each round's result replaced by its barrier distance to the border: background-coloured
holes inside an object fill, object-coloured regions at the border fade."""
GUIDE_RADIUS, GUIDE_EPS = 4, 1e-3


def heuristic_map(rgb: npt.NDArray[np.uint8], *, rounds: int) -> Map:
    """Return the foreground probability of (H, W, 3) uint8 pixels: (64, 64) float32 in [0, 1]."""
    small = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab: Map = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).astype(np.float32)
    contrast = border_contrast(lab)
    level = otsu_level(contrast)
    first = _sigmoid(SHARPNESS * (contrast - level))
    # Lightness and colour on like scales: a and b seldom leave the middle half of their range.
    features = (lab / 255).astype(np.float32)
    features[..., 1:] = np.clip(2 * features[..., 1:] - 0.5, 0, 1)
    bins = np.minimum((features * BINS).astype(np.int64), BINS - 1) @ [BINS * BINS, BINS, 1]
    smooth = GuidedFilter.of(features)
    border = _border(width=max(1, round(0.04 * SIDE)))
    probability = first
    for _ in range(rounds):
        ratio = _log_ratio(bins, probability, border)
        probability = smooth(_sigmoid(ratio + ANCHOR * (2 * first - 1)))
        barrier = barrier_distance(probability.astype(np.float64)).astype(np.float32)
        probability += CONNECTED * (barrier - probability)
    return probability


def border_contrast(lab: Map) -> Map:
    """Return the (S, S) contrast of (S, S, 3) Lab pixels to their border, in [0, 1]."""
    channels = np.ascontiguousarray(np.moveaxis(lab, 2, 0)).astype(np.float64)
    barrier = _unit(sum(barrier_distance(channel) for channel in channels))
    width = max(2, round(0.08 * len(lab)))
    sides = (lab[:width], lab[-width:], lab[:, :width], lab[:, -width:])
    distances = np.stack([_mahalanobis(lab, side.reshape(-1, 3)) for side in sides])
    distances /= np.maximum(distances.max(axis=(1, 2), keepdims=True), 1e-6)
    # One side may be covered by the object: the largest of the four distances is left out.
    outside = _unit(distances.sum(0) - distances.max(0))
    return _unit((barrier + outside) * centre_prior(len(lab), sigma=CENTRE_SIGMA))


def centre_prior(side: int, *, sigma: float) -> Map:
    """Return a (side, side) Gaussian about the centre of peak 1; sigma counts in image sides."""
    line = (np.arange(side) + 0.5) / side - 0.5
    bell = np.exp(-(line**2) / (2 * sigma**2))
    return np.outer(bell, bell).astype(np.float32)


@njit(cache=True)
def barrier_distance(values):  # type: ignore[no-untyped-def]
    """Return the minimum barrier distance to the border, by four raster scans.

    values: (H, W) float64. The barrier of a path is its largest minus its smallest value.
    """
    height, width = values.shape
    distance = np.full((height, width), np.inf)
    distance[0], distance[-1], distance[:, 0], distance[:, -1] = 0.0, 0.0, 0.0, 0.0
    high, low = values.copy(), values.copy()
    for scan in range(4):
        step = 1 if scan % 2 == 0 else -1
        for i in range(1, height - 1):
            y = i if step == 1 else height - 1 - i
            for j in range(1, width - 1):
                x = j if step == 1 else width - 1 - j
                value = values[y, x]
                for dy, dx in ((-step, 0), (0, -step)):
                    top = max(high[y + dy, x + dx], value)
                    bottom = min(low[y + dy, x + dx], value)
                    if top - bottom < distance[y, x]:
                        distance[y, x], high[y, x], low[y, x] = top - bottom, top, bottom
    return distance


def _mahalanobis(lab: Map, colours: Map) -> Map:
    spread = np.cov(colours.T) + 20 * np.eye(3)  # 20: a noise of 4.5 levels keeps it invertible
    offset = lab - colours.mean(0)
    square = ((offset @ np.linalg.inv(spread).astype(np.float32)) * offset).sum(2)
    return np.asarray(np.sqrt(np.maximum(square, 0)), np.float32)


def _kernel() -> npt.NDArray[np.float32]:
    step = np.arange(BINS)[:, None] - np.arange(BINS)
    kernel = np.exp(-(step**2) / (2 * 0.7**2))  # bins of 16 levels, smoothed by about 11 levels
    return np.asarray(kernel / kernel.sum(0), np.float32)


_KERNEL = _kernel()


def _log_ratio(bins: npt.NDArray[np.int64], probability: Map, border: Map) -> Map:
    """Return the clipped log ratio of foreground to background colour density at each pixel."""
    logs = []
    for weight in (probability, 1 - probability + border):
        counts = np.bincount(bins.ravel(), weights=weight.ravel(), minlength=BINS**3)
        cube = (counts / max(counts.sum(), 1e-6)).astype(np.float32).reshape(BINS, BINS, BINS)
        for _ in range(3):  # smooth one axis, move it last: after three the order is back
            cube = np.moveaxis(np.tensordot(_KERNEL, cube, axes=1), 0, 2)
        logs.append(np.log(cube + 1e-5).ravel()[bins])
    return np.asarray(np.clip(logs[0] - logs[1], -4, 4), np.float32)


@dataclass(frozen=True)
class GuidedFilter:
    """Edge-aware smoothing along an image of three features (He et al., 2013, equations 19-21)."""

    features: Map
    mean: Map
    inverse: Map
    """(S, S, 3, 3): inverse of each window's feature covariance."""

    @staticmethod
    def of(features: Map) -> GuidedFilter:
        """Return the filter of (S, S, 3) features."""
        mean = _box(features)
        products = features[..., :, None] * features[..., None, :]
        moments = _box(products.reshape(*features.shape[:2], 9)).reshape(products.shape)
        spread = moments - mean[..., :, None] * mean[..., None, :]
        inverse = np.linalg.inv(spread + GUIDE_EPS * np.eye(3, dtype=np.float32))
        return GuidedFilter(features, mean, inverse)

    def __call__(self, values: Map) -> Map:
        """Return (S, S) values smoothed, in [0, 1]."""
        mean = _box(values)
        shared = _box(self.features * values[..., None]) - self.mean * mean[..., None]
        slope = np.einsum("yxij,yxj->yxi", self.inverse, shared)
        offset = mean - (slope * self.mean).sum(2)
        smooth = (_box(slope) * self.features).sum(2) + _box(offset)
        return np.asarray(np.clip(smooth, 0, 1), np.float32)


def _box(values: Map) -> Map:
    side = 2 * GUIDE_RADIUS + 1
    if values.ndim == 2 or values.shape[2] <= 4:
        mean = cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT)
        return np.asarray(mean, np.float32)
    return np.stack([_box(channel) for channel in np.moveaxis(values, 2, 0)], axis=2)


def _border(*, width: int) -> Map:
    border = np.ones((SIDE, SIDE), np.float32)
    border[width:-width, width:-width] = 0
    return border


def _unit(values: npt.NDArray[np.floating]) -> Map:
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-9)).astype(np.float32)


def _sigmoid(values: Map) -> Map:
    return (1 / (1 + np.exp(-values))).astype(np.float32)
