"""Backgrounds of drawn pictures: kind, colours and clutter are drawn freely."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from preprocess.demo.paint import RGB, Draw, Plane, blur, colour, mix, noise


def _palette(draw: Draw, share: Plane) -> RGB:
    """Return a map of [0, 1] in the colours between three draws."""
    first, second, third = colour(draw), colour(draw), colour(draw)
    return mix(2 * share - 1, mix(2 * share, first, second), third)


def _texture(draw: Draw, side: int) -> RGB:
    return _palette(draw, noise(draw, side, cells=draw.uniform(2, 12), octaves=6))


def _horizon(draw: Draw, side: int) -> RGB:
    y = np.linspace(0, 1, side, dtype=np.float32)[:, None] * np.ones((1, side), np.float32)
    line = draw.uniform(0.3, 0.7) + draw.uniform(0.01, 0.12) * (
        noise(draw, side, cells=3)[:1] - 0.5
    )
    clouds = noise(draw, side, cells=3, octaves=6, stretch=2.5) ** draw.uniform(1, 3)
    sky = mix(
        clouds,
        mix((y / line).astype(np.float32), colour(draw), colour(draw)),
        np.ones(3, np.float32),
    )
    # Nearer ground shows larger features: the texture is stretched towards the lower edge.
    depth = np.clip((y - line) / np.maximum(1 - line, 1e-3), 0.02, 1)
    grain = noise(draw, side, cells=draw.uniform(8, 24), octaves=4, stretch=2.0)
    rows = (side * (depth**0.5)).astype(np.float32)
    columns = np.arange(side, dtype=np.float32)[None] * np.ones((side, 1), np.float32)
    near = cv2.remap(grain, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    ground = mix(np.asarray(near, np.float32), colour(draw), colour(draw)) * (
        0.65 + 0.35 * depth[..., None]
    )
    return mix(((y - line) * side / 2 + 0.5).astype(np.float32), sky, ground)


def _grain(draw: Draw, side: int) -> RGB:
    """Wood or cloth: stripes along a turned axis, bent by noise."""
    angle = draw.uniform(0, np.pi)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    across = x * np.cos(angle) + y * np.sin(angle)
    bend = draw.uniform(0.02, 0.3) * noise(draw, side, cells=3)
    wave = np.sin(2 * np.pi * draw.uniform(5, 25) * (across + bend)) * 0.5 + 0.5
    fine = noise(draw, side, cells=side / 4, octaves=2)
    return _palette(draw, (0.65 * wave + 0.35 * fine).astype(np.float32))


def _tiles(draw: Draw, side: int) -> RGB:
    """Bricks or tiles of unlike shades with joints."""
    angle, pitch = draw.uniform(-0.6, 0.6), draw.uniform(0.08, 0.25)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    u = (x * np.cos(angle) + y * np.sin(angle)) / pitch / draw.uniform(1, 2.2)
    v = (y * np.cos(angle) - x * np.sin(angle)) / pitch
    row = np.floor(v)
    u = u + draw.choice([0.0, 0.5]) * (row % 2)
    edge = np.minimum(np.minimum(u % 1, 1 - u % 1), np.minimum(v % 1, 1 - v % 1)) * pitch * side
    shades = draw.random((64, 64), np.float32)
    shade = shades[row.astype(int) % 64, np.floor(u).astype(int) % 64]
    rough = noise(draw, side, cells=side / 6, octaves=2)
    stone = mix(0.6 * shade + 0.4 * rough, colour(draw), colour(draw))
    return mix(1.5 - edge, stone, colour(draw)).astype(np.float32)


def _bokeh(draw: Draw, side: int) -> RGB:
    """Out-of-focus lights over a smooth ground."""
    picture = _palette(draw, noise(draw, side, cells=2, octaves=2)) * 0.7
    for _ in range(int(draw.integers(8, 30))):
        x, y = (int(v) for v in draw.integers(0, side, 2))
        disc = np.zeros((side, side), np.float32)
        cv2.circle(disc, (x, y), int(draw.uniform(0.02, 0.12) * side), 1.0, -1, cv2.LINE_AA)
        picture = mix(draw.uniform(0.15, 0.6) * disc, picture, colour(draw) * 1.1)
    return blur(picture, draw.uniform(0.3, 2))


def _litter(draw: Draw, side: int) -> RGB:
    """Leaves, pebbles or shards: many small pieces over a texture."""
    picture = np.ascontiguousarray(_texture(draw, side) * 0.7)
    first, second = colour(draw), colour(draw)
    corners = int(draw.integers(3, 9))
    for _ in range(int(draw.integers(60, 200))):
        centre, size = draw.random(2) * side, draw.uniform(0.02, 0.07) * side
        angle = np.sort(draw.uniform(0, 2 * np.pi, corners))
        points = centre + size * np.stack([np.cos(angle), 0.6 * np.sin(angle)], 1)
        tint = (first + draw.random() * (second - first)) * draw.uniform(0.6, 1.2)
        outline = np.round(points * 16).astype(np.int32)
        cv2.fillPoly(picture, [outline], tint.tolist(), cv2.LINE_AA, 4)
    return picture


SCENES: tuple[Callable[[Draw, int], RGB], ...]
SCENES = (_texture, _horizon, _horizon, _grain, _tiles, _bokeh, _litter)


def background(draw: Draw, side: int) -> RGB:
    """Return a (side, side, 3) scene with its light: kind, colours and clutter are drawn freely."""
    picture = SCENES[int(draw.integers(len(SCENES)))](draw, side)
    for _ in range(int(draw.integers(0, 4))):
        picture = _with_clutter(picture, draw, side)
    focus = draw.uniform(0, 1.2)
    if focus > 0.3:
        picture = blur(picture, float(focus))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    turn = draw.uniform(0, 2 * np.pi)
    light = 1 + draw.uniform(0, 0.5) * (x * np.cos(turn) + y * np.sin(turn))
    return np.asarray(picture * light[..., None], np.float32)


def _with_clutter(picture: RGB, draw: Draw, side: int) -> RGB:
    """Return the picture with one more patch: a smooth blob of another texture, out of focus."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    cx, cy = draw.uniform(-0.1, 1.1, 2)
    a, b = draw.uniform(0.06, 0.3, 2)
    wobble = 0.6 * noise(draw, side, cells=4, octaves=3)
    inside = 1 - np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2) + wobble - 0.3
    share = np.clip(inside * side * min(a, b) / draw.uniform(1, 4) + 0.5, 0, 1)
    return mix(share, picture, _texture(draw, side))
