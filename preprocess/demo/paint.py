"""What pictures are painted with: fractal noise, colours, blends and filled shapes."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
"""(S, S) float32."""
RGB = npt.NDArray[np.float32]
"""(S, S, 3) float32 RGB, about [0, 1]; a single colour is (3,)."""
Points = npt.NDArray[np.float64]
"""(N, 2) x, y; y points down."""
Draw = np.random.Generator


def noise(draw: Draw, side: int, *, cells: float, octaves: int = 4, stretch: float = 1.0) -> Plane:
    """Return fractal noise in [0, 1]; ``cells`` features across, each octave half the last's size.

    stretch: how many times longer features are along x than along y.
    """
    total = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        rows = max(2, round(cells * 2**octave))
        columns = max(2, round(cells * 2**octave / stretch))
        if rows > 2 * side:
            break
        grid = draw.random((rows + 1, columns + 1), np.float32)
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def colour(draw: Draw, *, vivid: float = 0.65) -> RGB:
    """Return an RGB colour of uniform hue; saturation at most ``vivid``, more often below half."""
    hue, saturation, value = draw.random(), vivid * draw.beta(1.3, 1.8), draw.uniform(0.2, 0.95)
    hsv = np.array([[[360 * hue, saturation, value]]], np.float32)
    rgb: RGB = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    return rgb


def mix(share: Plane, first: RGB, second: RGB) -> RGB:
    """Return ``first`` where share is 0 and ``second`` where it is 1; colours or pictures."""
    return first + np.clip(share, 0, 1)[..., None] * (second - first)


def blur(picture: RGB, sigma: float) -> RGB:
    """Return a plane or picture under a Gaussian of ``sigma`` pixels."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)


def fill(picture: RGB, outline: Points, tone: RGB) -> None:
    """Fill a polygon with smooth edges; outline in pixels, the picture contiguous."""
    points = np.round(np.asarray(outline) * 16).astype(np.int32)
    cv2.fillPoly(picture, [points], tone.tolist(), cv2.LINE_AA, 4)


def disc(picture: RGB, centre: Points, radius: float, tone: RGB) -> None:
    """Fill a disc with smooth edges; centre (2,) and radius in pixels, the picture contiguous."""
    x, y = np.round(np.asarray(centre) * 16).astype(int).tolist()
    cv2.circle(picture, (x, y), round(radius * 16), tone.tolist(), -1, cv2.LINE_AA, 4)
