"""The ten scenes of the demo set. Nothing here knows which object will stand in front.

A scene's name fixes its kind, texture and palette. What varies from image to image is where
things lie, how many there are, and shades about the palette. They are meant to be told apart at a
glance, and so to draw a network's attention away from the object.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from preprocess.demo.paint import RGB, Draw, Plane, Points, blur, disc, fill, mix, noise


def background(draw: Draw, scene: str, side: int) -> RGB:
    """Return a (side, side, 3) picture of a scene, a key of `SCENES`, under its own light."""
    picture = SCENES[scene](draw, side)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    turn = draw.uniform(0, 2 * np.pi)
    light = 1 + draw.uniform(0, 0.5) * (x * np.cos(turn) + y * np.sin(turn))
    focus = draw.uniform(0.25, 0.7) * side / 96
    return blur(np.asarray(picture * light[..., None], np.float32), focus)


def autumn(draw: Draw, side: int) -> RGB:
    """Fallen leaves, yellow to red, over dark earth; some twigs."""
    picture = mix(noise(draw, side, cells=10), _tone(draw, "#241509"), _tone(draw, "#5a3a1a"))
    tones = [_tone(draw, text) for text in ("#c8501a", "#e09a24", "#a52a1c", "#8a5a22")]
    for _ in range(int(draw.integers(90, 130))):
        size = draw.uniform(0.03, 0.065) * side
        blade = _turned(np.array([[-1, 0], [-0.2, -0.6], [1, 0], [-0.2, 0.6]]), draw)
        tone = tones[int(draw.integers(4))] * np.float32(draw.uniform(0.6, 1.15))
        fill(picture, draw.random(2) * side + size * blade, tone)
    for _ in range(int(draw.integers(0, 5))):
        _stick(draw, picture, _tone(draw, "#1c1008"))
    return picture


def brick(draw: Draw, side: int) -> RGB:
    """A wall of red bricks with pale joints; patches of plaster."""
    y, x = _grid(side)
    turn, pitch = draw.uniform(-0.12, 0.12), draw.uniform(0.075, 0.11)
    u = (x + turn * y) / (2.3 * pitch) + draw.random()
    v = (y - turn * x) / pitch + draw.random()
    row = np.floor(v)
    u = u + 0.5 * (row % 2)
    edge = np.minimum(np.minimum(u % 1, 1 - u % 1) * 2.3, np.minimum(v % 1, 1 - v % 1)) * pitch
    tints = draw.random((32, 32), np.float32)[row.astype(int) % 32, np.floor(u).astype(int) % 32]
    share = np.asarray(0.7 * tints + 0.3 * noise(draw, side, cells=side / 5, octaves=2))
    stone = mix(share, _tone(draw, "#7a2a1a"), _tone(draw, "#b4583a"))
    wall = mix(np.asarray(1.6 - edge * side, np.float32), stone, _tone(draw, "#b9ab98"))
    return _patched(draw, np.asarray(wall, np.float32), _tone(draw, "#c9b8a2"))


def city(draw: Draw, side: int) -> RGB:
    """Lights out of focus in a dark blue night."""
    y, _ = _grid(side)
    haze = np.asarray(0.6 * y + 0.4 * noise(draw, side, cells=2, octaves=2))
    picture = mix(haze, _tone(draw, "#05081c"), _tone(draw, "#2a2450"))
    tones = [_tone(draw, text) for text in ("#ffd070", "#ff8a3c", "#ff4a5a", "#f4f0ff")]
    for _ in range(int(draw.integers(22, 40))):
        lamp = picture.copy()
        place = draw.random(2) * side
        disc(lamp, place, draw.uniform(0.015, 0.06) * side, tones[int(draw.integers(4))])
        picture += np.float32(draw.uniform(0.35, 0.9)) * (lamp - picture)
    return blur(picture, 0.008 * side)


def desert(draw: Draw, side: int) -> RGB:
    """Rippled sand under a yellow sky; stones."""
    y, x = _grid(side)
    line = _skyline(draw, side, low=0.12, high=0.3, rough=0.12)
    sky = mix(y / 0.3, _tone(draw, "#d8a860"), _tone(draw, "#f4dfae"))
    bend = draw.uniform(0.1, 0.3) * noise(draw, side, cells=3)
    slope = draw.uniform(-0.5, 0.5)
    ripple = np.sin(2 * np.pi * draw.uniform(12, 18) * (y + slope * x + bend))
    share = np.asarray(0.5 + 0.35 * ripple + 0.3 * (noise(draw, side, cells=4) - 0.5))
    sand = mix(share, _tone(draw, "#b0762c"), _tone(draw, "#ecc070"))
    picture = _above(line, sky, sand)
    for _ in range(int(draw.integers(2, 8))):
        place = np.array([draw.random(), draw.uniform(0.35, 1.0)]) * side
        stone = _turned(_round(draw, 7), draw) * [1, 0.6]
        fill(picture, place + draw.uniform(0.02, 0.06) * side * stone, _tone(draw, "#5e3a1c"))
    return picture


def forest(draw: Draw, side: int) -> RGB:
    """Upright trunks before dark leaves."""
    picture = mix(noise(draw, side, cells=14), _tone(draw, "#071a0c"), _tone(draw, "#1f5a26"))
    for _ in range(int(draw.integers(5, 10))):
        left, width = draw.random() * side, draw.uniform(0.025, 0.08) * side
        lean, taper = draw.uniform(-0.06, 0.06) * side, draw.uniform(0.6, 0.9)
        ends = [[-lean, -1], [-lean + taper * width, -1], [width, side], [0, side]]
        bark = _tone(draw, "#4a3524") * np.float32(draw.uniform(0.5, 1.3))
        fill(picture, np.array(ends) + np.array([left, 0]), bark)
    for _ in range(int(draw.integers(40, 70))):
        leaf = _turned(np.array([[-1, 0], [0, -0.5], [1, 0], [0, 0.5]]), draw)
        tone = _tone(draw, "#2f7d32") * np.float32(draw.uniform(0.5, 1.2))
        fill(picture, draw.random(2) * side + draw.uniform(0.02, 0.04) * side * leaf, tone)
    return picture


def meadow(draw: Draw, side: int) -> RGB:
    """Blades of light green grass with flowers."""
    picture = mix(noise(draw, side, cells=8), _tone(draw, "#5d9a2c"), _tone(draw, "#8fc747"))
    for _ in range(int(draw.integers(120, 170))):
        foot, height = draw.random(2) * [1, 1.15] * side, draw.uniform(0.08, 0.2) * side
        half, lean = 0.012 * side, draw.uniform(-0.35, 0.35) * height
        tone = _tone(draw, "#78b83a") * np.float32(draw.uniform(0.55, 1.25))
        fill(picture, foot + np.array([[-half, 0], [lean, -height], [half, 0]]), tone)
    tones = [_tone(draw, text) for text in ("#ffffff", "#ffe23c", "#e858b0")]
    for _ in range(int(draw.integers(8, 22))):
        place, size = draw.random(2) * side, draw.uniform(0.012, 0.03) * side
        disc(picture, place, size, tones[int(draw.integers(3))])
    return picture


def pebbles(draw: Draw, side: int) -> RGB:
    """Grey and bluish rounded stones, each lit from above."""
    picture = mix(noise(draw, side, cells=12), _tone(draw, "#1e2226"), _tone(draw, "#3c4248"))
    tones = [_tone(draw, text) for text in ("#8c959c", "#a8a8a4", "#6c7a88", "#c4c6c8")]
    for _ in range(int(draw.integers(80, 110))):
        stone = _turned(_round(draw, 10) * [1, 0.75], draw)
        place, size = draw.random(2) * side, draw.uniform(0.035, 0.075) * side
        tone = tones[int(draw.integers(4))] * np.float32(draw.uniform(0.8, 1.1))
        fill(picture, place + size * stone, tone * np.float32(0.65))
        fill(picture, place + size * (0.75 * stone - [0, 0.15]), tone)
    return picture


def sea(draw: Draw, side: int) -> RGB:
    """Blue water with foam under a pale sky; rocks."""
    y, _ = _grid(side)
    line = _skyline(draw, side, low=0.1, high=0.28, rough=0.0)
    clouds = noise(draw, side, cells=3, stretch=2.5)
    sky = mix(clouds, _tone(draw, "#9cc8ea"), _tone(draw, "#e8f2f8"))
    swell = noise(draw, side, cells=draw.uniform(12, 18), octaves=3, stretch=5.0)
    water = mix(swell, _tone(draw, "#06306a"), _tone(draw, "#2c86b8"))
    foam = noise(draw, side, cells=16, octaves=2, stretch=4.0) + 0.15 * y
    water = mix(np.asarray((foam - 0.75) * 10, np.float32), water, _tone(draw, "#e6f4f6"))
    picture = _above(line, sky, water)
    for _ in range(int(draw.integers(0, 5))):
        place = np.array([draw.random(), draw.uniform(0.3, 1.0)]) * side
        fill(picture, place + draw.uniform(0.02, 0.06) * side * _round(draw, 8) * [1, 0.6],
             _tone(draw, "#20303a"))  # fmt: skip
    return picture


def snow(draw: Draw, side: int) -> RGB:
    """White drifts with bluish shade under grey mountains; small fir trees."""
    y, _ = _grid(side)
    sky = mix(y / 0.4, _tone(draw, "#a8b8d0"), _tone(draw, "#dde6f2"))
    peaks = _skyline(draw, side, low=0.08, high=0.2, rough=0.5)
    rock = mix(noise(draw, side, cells=8), _tone(draw, "#6a7890"), _tone(draw, "#a9b6c8"))
    drift = noise(draw, side, cells=4, octaves=3, stretch=2.5)
    ground = mix(drift, _tone(draw, "#c2d2ea"), _tone(draw, "#fbfcff"))
    picture = _above(peaks, sky, rock)
    picture = _above(_skyline(draw, side, low=0.3, high=0.42, rough=0.1), picture, ground)
    for _ in range(int(draw.integers(5, 14))):
        foot, height = np.array([draw.random(), draw.uniform(0.4, 1.05)]), draw.uniform(0.05, 0.14)
        fir = np.array([[0, -1.0], [0.32, 0], [-0.32, 0]]) * height
        fill(picture, (foot + fir) * side, _tone(draw, "#1c3a38"))
    return picture


def wood(draw: Draw, side: int) -> RGB:
    """Light brown planks with grain and knots."""
    y, x = _grid(side)
    turn = draw.uniform(-0.2, 0.2)
    along, across = x + turn * y, y - turn * x
    pitch = draw.uniform(0.16, 0.26)
    plank = across / pitch + draw.random()
    shift = draw.random(32, np.float32)[np.floor(plank).astype(int) % 32]
    bend = noise(draw, side, cells=5, octaves=2, stretch=3.0)
    rings = np.sin(2 * np.pi * (draw.uniform(18, 26) * across + 1.6 * bend + 5 * shift))
    fine = noise(draw, side, cells=side / 4, octaves=2, stretch=8.0)
    share = np.asarray(0.35 + 0.2 * rings + 0.25 * fine + 0.3 * shift - 0.05 * along)
    picture = mix(share, _tone(draw, "#8a5c30"), _tone(draw, "#d9a868"))
    joint = np.minimum(plank % 1, 1 - plank % 1) * pitch * side
    picture = mix(np.asarray(1.3 - joint, np.float32), picture, _tone(draw, "#2e1c0e"))
    picture = np.ascontiguousarray(picture, np.float32)
    for _ in range(int(draw.integers(2, 7))):
        place, size = draw.random(2) * side, draw.uniform(0.015, 0.035) * side
        fill(picture, place + size * _round(draw, 12) * [1.5, 1], _tone(draw, "#5c3818"))
        fill(picture, place + 0.5 * size * _round(draw, 12) * [1.5, 1], _tone(draw, "#2e1a0a"))
    return picture


def _tone(draw: Draw, text: str) -> RGB:
    """Return an RGB colour such as "#804020", a shade to either side of it."""
    base = np.array([int(text[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.asarray(base * draw.uniform(0.88, 1.12) + draw.uniform(-0.03, 0.03, 3), np.float32)


def _grid(side: int) -> tuple[Plane, Plane]:
    """Return y and x in [0, 1), each (side, side)."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    return y, x


def _skyline(draw: Draw, side: int, *, low: float, high: float, rough: float) -> Plane:
    """Return each column's height (1, side) of a line, as a share of the side from the top."""
    wave = noise(draw, side, cells=4, octaves=4)[:1] - 0.5
    return np.asarray(draw.uniform(low, high) + rough * 0.5 * wave, np.float32)


def _above(line: Plane, upper: RGB, lower: RGB) -> RGB:
    """Return one picture above a line and the other below it."""
    side = upper.shape[0]
    y, _ = _grid(side)
    share = np.asarray((y - line) * side + 0.5, np.float32)
    return np.ascontiguousarray(mix(share, upper, lower), np.float32)


def _patched(draw: Draw, picture: RGB, tone: RGB) -> RGB:
    """Return a picture with up to three smooth blots."""
    side = picture.shape[0]
    y, x = _grid(side)
    for _ in range(int(draw.integers(0, 4))):
        (left, top), (a, b) = draw.random(2), draw.uniform(0.04, 0.14, 2)
        inside = 1 - np.hypot((x - left) / a, (y - top) / b)
        inside = inside + 0.9 * (noise(draw, side, cells=6, octaves=3) - 0.5)
        picture = mix(np.asarray(inside * side * 0.1), picture, tone)
    return picture


def _stick(draw: Draw, picture: RGB, tone: RGB) -> None:
    side = picture.shape[0]
    twig = np.array([[-1, -0.03], [1, -0.015], [1, 0.015], [-1, 0.03]])
    fill(picture, draw.random(2) * side + draw.uniform(0.1, 0.2) * side * _turned(twig, draw), tone)


def _round(draw: Draw, corners: int) -> Points:
    """Return an uneven outline of about radius 1."""
    angle = np.arange(corners) * 2 * np.pi / corners
    radius = draw.uniform(0.75, 1.1, (corners, 1))
    return np.asarray(radius * np.stack([np.cos(angle), np.sin(angle)], 1))


def _turned(points: Points, draw: Draw) -> Points:
    """Return points turned about the origin by any angle."""
    angle = draw.uniform(0, 2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]))


SCENES: dict[str, Callable[[Draw, int], RGB]] = {
    scene.__name__: scene
    for scene in (autumn, brick, city, desert, forest, meadow, pebbles, sea, snow, wood)
}
