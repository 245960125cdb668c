"""The surface patterns of the demo set's objects: one for each kind.

A pattern is a function of object coordinates, so that it turns and grows with the object. Its two
tints are drawn anew for each image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from preprocess.demo.paint import Draw, Plane, noise

Pattern = Callable[[Plane, Plane, Draw], Plane]
"""Share of the second tint, (S, S) in [0, 1], from the object's coordinates u and v (S, S)."""


def checks(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Squares, in turn of one tint and the other."""
    a, b = draw.random(2)
    return _sharp(np.sin(np.pi * (u / 0.21 + a)) * np.sin(np.pi * (v / 0.21 + b)), 4)


def scales(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Rows of overlapping round scales with dark edges."""
    row = np.floor(u / 0.2)
    across = (v / 0.28 + 0.5 * (row % 2)) % 1 - 0.5
    return _sharp(np.hypot(across * 1.15, u / 0.2 % 1) - 0.72, 6)


def rings(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Circles about the middle."""
    return _sharp(np.sin(2 * np.pi * (np.hypot(u, v) / 0.24 + draw.random())), 3)


def chevrons(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Oblique lines that meet on the axis."""
    return _sharp(np.sin(2 * np.pi * ((u - np.abs(v)) / 0.26 + draw.random())), 3)


def bands(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Broad bands across."""
    return _sharp(np.sin(2 * np.pi * (v / 0.42 + draw.random())), 4)


def rays(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Sectors about the middle."""
    return _sharp(np.sin(12 * np.arctan2(v, u) + 2 * np.pi * draw.random()), 3)


def dots(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Round spots in rows."""
    row = np.floor(v / 0.22)
    across = (u / 0.25 + 0.5 * (row % 2) + draw.random()) % 1 - 0.5
    return _sharp(0.3 - np.hypot(across, v / 0.22 % 1 - 0.5), 8)


def net(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Thin oblique lines that cross."""
    a, b = draw.random(2)
    lines = [np.abs(((u + sign * v) / 0.3 + shift) % 1 - 0.5) for sign, shift in ((1, a), (-1, b))]
    return _sharp(0.13 - np.minimum(*lines), 12)


def blots(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Irregular spots with sharp edges."""
    return _sharp(noise(draw, len(u), cells=9, octaves=2) - 0.55, 10)


def grain(u: Plane, v: Plane, draw: Draw) -> Plane:
    """Fine mottles."""
    return _sharp(noise(draw, len(u), cells=18, octaves=2) - 0.5, 6)


def _sharp(value: Plane, slope: float) -> Plane:
    """Return the step from 0 to 1 at value 0, as steep as pixels allow."""
    return np.asarray(np.clip(value * slope + 0.5, 0, 1), np.float32)


SURFACES: dict[str, Pattern] = {
    "crescent": blots,
    "cross": checks,
    "fish": scales,
    "gear": rings,
    "leaf": chevrons,
    "mug": bands,
    "ring": rays,
    "spiral": dots,
    "star": net,
    "tree": grain,
}
"""By kind of object, see `shapes.SHAPES`."""
