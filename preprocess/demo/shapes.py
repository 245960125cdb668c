"""The objects of the demo set: outlines and parts as polygons, a new individual at every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from preprocess.demo.paint import Draw, Points

DARK, LIGHT = 0.62, 1.3
"""Factors on a part's brightness."""


@dataclass
class Shape:
    """What is filled, what is cut out of it, and parts that differ in brightness only."""

    solids: list[Points] = field(default_factory=list)
    holes: list[Points] = field(default_factory=list)
    parts: list[tuple[Points, float]] = field(default_factory=list)


def star(draw: Draw) -> Shape:
    """Five to seven points, each with one facet in shade."""
    points = int(draw.integers(5, 8))
    inner = draw.uniform(0.4, 0.52)
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    outline = _polar(radius, angle)
    facets = [np.array([[0.0, 0.0], outline[i], outline[i + 1]]) for i in range(0, 2 * points, 2)]
    return Shape([outline], parts=[(facet, DARK) for facet in facets])


def gear(draw: Draw) -> Shape:
    """A toothed wheel with a bore and a dark inner rim."""
    teeth = int(draw.integers(8, 13))
    depth = draw.uniform(0.74, 0.82)
    profile = np.array([depth, 1.0, 1.0, depth])
    edges = (np.arange(teeth)[:, None] + np.array([0.1, 0.2, 0.5, 0.6])) * 2 * np.pi / teeth
    outline = _polar(np.tile(profile, teeth), edges.ravel())
    bore = draw.uniform(0.2, 0.3)
    rim = _ring(depth - 0.12, depth - 0.22)
    return Shape([outline], holes=[_ellipse(bore, bore)], parts=[(rim, DARK)])


def ring(draw: Draw) -> Shape:
    """A torus with a bright line along its middle."""
    inner = draw.uniform(0.5, 0.66)
    middle = (1 + inner) / 2
    shine = _ring(middle + 0.05, middle - 0.05)
    return Shape([_ellipse(1, 1)], holes=[_ellipse(inner, inner)], parts=[(shine, LIGHT)])


def leaf(draw: Draw) -> Shape:
    """A pointed blade with a stalk, a midrib and pairs of veins."""
    width = draw.uniform(0.4, 0.55)
    x = np.linspace(-0.75, 1.0, 40)
    share = (x + 0.75) / 1.75
    half = width * np.sin(np.pi * share**0.8) ** draw.uniform(0.8, 1.0)
    blade = np.concatenate([np.stack([x, -half], 1), np.stack([x, half], 1)[::-1]])
    stalk = _stroke(np.array([[-1.0, 0.06], [-0.7, 0.0]]), 0.05)
    veins = [(_stroke(np.array([[-0.75, 0.0], [0.9, 0.0]]), 0.03), DARK)]
    for start in np.linspace(-0.5, 0.5, int(draw.integers(4, 7))):
        for side in (-1, 1):
            tip = np.array([start + 0.35, side * width * 0.75])
            veins.append((_stroke(np.array([[start, 0.0], tip]), 0.02), DARK))
    return Shape([blade, stalk], parts=veins)


def crescent(draw: Draw) -> Shape:
    """A moon with craters."""
    offset, radius = draw.uniform(0.4, 0.52), draw.uniform(0.78, 0.86)
    bite = _ellipse(radius, radius, at=(offset, 0.0))
    craters = []
    for _ in range(int(draw.integers(3, 6))):
        angle, size = draw.uniform(0.65, 1.35) * np.pi, draw.uniform(0.05, 0.1)
        centre = (0.78 * np.cos(angle), 0.78 * np.sin(angle))
        craters.append((_ellipse(size, size, at=centre), DARK))
    return Shape([_ellipse(1, 1)], holes=[bite], parts=craters)


def fish(draw: Draw) -> Shape:
    """An oval body with tail and fins, an eye, a gill and scales."""
    height = draw.uniform(0.38, 0.52)
    body = _ellipse(0.72, height, at=(0.22, 0.0))
    spread = draw.uniform(0.4, 0.6)
    tail = np.array([[-0.35, 0.0], [-1.0, -spread], [-0.8, 0.0], [-1.0, spread]])
    fin = np.array([[0.35, -height * 0.9], [-0.05, -height - 0.32], [-0.15, -height * 0.7]])
    belly = np.array([[0.25, height * 0.9], [0.0, height + 0.22], [-0.1, height * 0.75]])
    parts = [
        (_ellipse(0.09, 0.09, at=(0.68, -0.1)), LIGHT),
        (_ellipse(0.045, 0.045, at=(0.69, -0.1)), 0.2),
    ]
    parts.append((_arc(0.3, 0.9, -0.9, 0.035) * [1, height * 2] + np.array([0.2, 0.0]), DARK))
    for x in np.linspace(-0.25, 0.3, 4):
        for y in np.linspace(-height * 0.5, height * 0.5, 3):
            parts.append((_arc(0.09, 1.2, -1.2, 0.025) + np.array([x, y]), DARK))
    return Shape([body, tail, fin, belly], parts=parts)


def tree(draw: Draw) -> Shape:
    """A trunk under a crown of overlapping tufts, dark below."""
    trunk = draw.uniform(0.1, 0.17)
    stem = np.array([[-trunk, -0.2], [trunk, -0.2], [1.6 * trunk, 1.0], [-1.6 * trunk, 1.0]])
    solids, parts = [stem], [(stem, DARK)]
    for _ in range(int(draw.integers(9, 14))):
        angle, reach = draw.uniform(0, 2 * np.pi), np.sqrt(draw.uniform()) * 0.5
        x, y = 1.2 * reach * np.cos(angle), 0.8 * reach * np.sin(angle) - 0.35
        size = draw.uniform(0.26, 0.4)
        solids.append(_ellipse(size, size, at=(x, y)))
        parts.append((_ellipse(0.7 * size, 0.4 * size, at=(x, y + 0.45 * size)), DARK))
        parts.append((_ellipse(0.6 * size, 0.35 * size, at=(x, y - 0.35 * size)), LIGHT))
    return Shape(solids, parts=parts)


def cross(draw: Draw) -> Shape:
    """Two bars, one bevelled edge bright."""
    arm = draw.uniform(0.24, 0.34)
    bars = [_box(-1, -arm, 1, arm), _box(-arm, -1, arm, 1)]
    inset = 0.4 * arm
    parts = [(_box(-0.92, -inset, 0.92, inset), LIGHT), (_box(-inset, -0.92, inset, 0.92), LIGHT)]
    return Shape(bars, parts=parts)


def spiral(draw: Draw) -> Shape:
    """A snail's coil of two turns or more that thickens outwards."""
    turns = draw.uniform(2.0, 2.5)
    share = np.linspace(0, 1, 120)
    angle = 2 * np.pi * turns * share
    path = _polar(0.1 + 0.78 * share, angle)
    bands = [_stroke(path[i : i + 5], 0.1) for i in range(0, 110, 8)]
    return Shape([_stroke(path, 0.06 + 0.06 * share)], parts=[(band, DARK) for band in bands[::2]])


def mug(draw: Draw) -> Shape:
    """A cup with a handle, a dark mouth and a band around it."""
    width, top = draw.uniform(0.5, 0.62), -0.75
    taper = draw.uniform(0.8, 1.0)
    body = np.array([[-width, top], [width, top], [width * taper, 0.8], [-width * taper, 0.8]])
    body = body - np.array([0.22, 0.0])
    lip = _ellipse(width, 0.18, at=(-0.22, top))
    base = _ellipse(width * taper, 0.16, at=(-0.22, 0.8))
    handle = _ellipse(0.45, 0.48, at=(width - 0.22, 0.0))
    grip = _ellipse(0.27, 0.3, at=(width - 0.22, 0.0))
    mouth = _ellipse(width * 0.86, 0.12, at=(-0.22, top))
    band = _box(-0.22 - width * 0.97, 0.1, -0.22 + width * 0.97, 0.1 + draw.uniform(0.15, 0.3))
    # The grip is a hole of the handle only: what lies on the body is filled again.
    return Shape(
        [handle, body, lip, base], [_right_of(grip, width - 0.2)], [(mouth, 0.4), (band, LIGHT)]
    )


def _right_of(points: Points, x: float) -> Points:
    return np.maximum(points, [x, -np.inf])


def _polar(radius: Points, angle: Points) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _ellipse(a: float, b: float, *, at: tuple[float, float] = (0.0, 0.0)) -> Points:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([at[0] + a * np.cos(angle), at[1] + b * np.sin(angle)], 1)


def _ring(outer: float, inner: float) -> Points:
    """Return an annulus as one closed line: out, a cut, and back inside."""
    angle = np.linspace(0, 2 * np.pi, 49)
    return np.concatenate(
        [_polar(np.full(49, outer), angle), _polar(np.full(49, inner), angle[::-1])]
    )


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _arc(radius: float, start: float, stop: float, half_width: float) -> Points:
    angle = np.linspace(start, stop, 12)
    return _stroke(_polar(np.full(12, radius), angle), half_width)


def _stroke(path: Points, half_width: float | Points) -> Points:
    """Return the outline of a line of the given half width (a number, or one per point)."""
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    offset = np.stack([-along[:, 1], along[:, 0]], 1) * np.reshape(half_width, (-1, 1))
    return np.concatenate([path + offset, (path - offset)[::-1]])


SHAPES: dict[str, Callable[[Draw], Shape]] = {
    shape.__name__: shape
    for shape in (crescent, cross, fish, gear, leaf, mug, ring, spiral, star, tree)
}
