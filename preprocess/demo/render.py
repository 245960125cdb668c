"""One image of the demo set: an object with exact mask in front of an unrelated scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from harl_fast.rng import SYNTHESIS, stream
from preprocess.demo.paint import RGB, Plane, Points, blur, colour, mix
from preprocess.demo.scenes import background
from preprocess.demo.shapes import SHAPES, Shape
from preprocess.demo.surfaces import SURFACES
from preprocess.images.arrays import Mask, Pixels

SUPERSAMPLING = 4
"""Outlines are filled at this many times the image's side and averaged: 17 levels of coverage."""
SCENE, OBJECT, CAMERA, TINTS = 0, 1, 2, 3
"""The layers' streams: what is drawn for one never moves another."""
LEAST, MOST = 0.16, 0.29
"""Share of the image that the object is drawn to cover."""
TONES_APART = 0.3
"""Least difference in brightness of an object's two tints, in [0, 1]: its pattern is to be seen."""


@dataclass(frozen=True)
class Rendered:
    """An image (S, S, 3) uint8 and the mask (S, S) bool of pixels at least half object."""

    image: Pixels
    mask: Mask


@dataclass(frozen=True)
class Pose:
    """Where an object stands: image points are ``matrix @ (u, v) + centre``, in pixels."""

    matrix: npt.NDArray[np.float64]
    """(2, 2)."""
    centre: npt.NDArray[np.float64]
    """(2,)."""

    def place(self, points: Points) -> Points:
        """Return object coordinates (N, 2) as pixels."""
        return points @ self.matrix.T + self.centre

    def coordinates(self, side: int) -> tuple[Plane, Plane]:
        """Return the object coordinates u and v of each pixel, (S, S) each."""
        y, x = np.mgrid[0:side, 0:side] + 0.5
        inverse = np.linalg.inv(self.matrix)
        found = np.stack([x - self.centre[0], y - self.centre[1]], 2) @ inverse.T
        u, v = np.asarray(found, np.float32).transpose(2, 0, 1)
        return u, v


def render(seed: int, index: int, *, kind: str, scene: str, split: int, side: int) -> Rendered:
    """Return one image, a function of the arguments alone.

    kind: a key of `SHAPES`. scene: one of `scenes.SCENES`. split: 0 training, 1 held out. The kind
    fixes shape, parts and surface pattern, the scene the background's kind, texture and palette;
    light, pose, size and place are drawn without regard to either, tints so that they stand out.
    """
    draws = [
        np.random.Generator(np.random.Philox(int(stream(seed, split, index, layer, SYNTHESIS))))
        for layer in (SCENE, OBJECT, CAMERA, TINTS)
    ]
    draw = draws[OBJECT]
    behind = background(draws[SCENE], scene, side)
    tints, raw = _tints(draws[TINTS], behind), draw.random(8)
    light, shadow = draw.uniform(0, 2 * np.pi), draw.uniform(0.02, 0.05)
    # The shape's own draws come last: they differ in number from kind to kind.
    shape = SHAPES[kind](draw)
    pose = _pose(raw, shape, side)
    cover, shade = _filled(shape, pose, side)
    surface = mix(SURFACES[kind](*pose.coordinates(side), draw), *tints)
    away = -shadow * side * np.array([np.cos(light), np.sin(light)])
    picture = behind * (1 - 0.5 * _shifted_blur(cover, away, 0.025 * side))[..., None]
    body = surface * (shade * _relief(cover, light))[..., None]
    return Rendered(_photograph(mix(cover, picture, body), draws[CAMERA]), cover >= 0.5)


def _tints(draw: np.random.Generator, scene: RGB) -> tuple[RGB, RGB]:
    """Return two colours unlike each other, the first unlike the middle of the scene."""
    side = len(scene)
    middle = scene[side // 4 : -side // 4, side // 4 : -side // 4].mean((0, 1))
    first = colour(draw, vivid=1.0)
    for _ in range(8):  # an object in the scene's own colour could not be seen by anyone
        if np.abs(first - middle).max() > 0.25:
            break
        first = colour(draw, vivid=1.0)
    second = colour(draw, vivid=1.0)
    for _ in range(20):
        if abs(first.mean() - second.mean()) > TONES_APART:
            break
        second = colour(draw, vivid=1.0)
    return first, second


def _pose(raw: npt.NDArray[np.float64], shape: Shape, side: int) -> Pose:
    """Return where an object stands: turned, sheared, mirrored, of the share drawn, in the frame.

    raw: (8,) draws in [0, 1).
    """
    angle, shear, aspect = (raw[:3] * 2 - 1) * [0.6, 0.2, 0.2]
    mirror, share = np.sign(raw[3] - 0.5), LEAST + raw[4] * (MOST - LEAST)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    unit = turn @ np.array([[mirror * np.exp(aspect), shear], [0.0, np.exp(-aspect)]])
    corners = np.concatenate(shape.solids) @ unit.T
    low, high = corners.min(0), corners.max(0)
    # Of a long object the frame's side, less a pixel to either side, is the limit.
    radius = min(np.sqrt(share / _area(shape)) * side, (side - 2) / (high - low).max())
    room = side - 2 - radius * (high - low)
    return Pose(radius * unit, 1 + room * raw[5:7] - radius * low)


def _area(shape: Shape) -> float:
    """Return the area of a shape in its own coordinates."""
    fine, reach = 160, 1.25
    plane = _solid(shape, lambda points: (points + reach) * (fine / (2 * reach)), fine)
    return float(np.count_nonzero(plane)) * (2 * reach / fine) ** 2


def _filled(shape: Shape, pose: Pose, side: int) -> tuple[Plane, Plane]:
    """Return the object's coverage in [0, 1] and its parts' brightness factor, both (S, S)."""
    fine = side * SUPERSAMPLING
    solid = _solid(shape, lambda points: SUPERSAMPLING * pose.place(points), fine)
    marks = np.full((fine, fine), 100, np.uint8)
    for outline, factor in shape.parts:
        _fill(marks, SUPERSAMPLING * pose.place(outline), round(100 * factor))
    cover, shade = (
        np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA), np.float32)
        for plane in (solid, marks)
    )
    return cover / np.float32(255), shade / np.float32(100)


def _solid(shape: Shape, place: Callable[[Points], Points], side: int) -> Pixels:
    """Return (side, side) with 255 inside the object. place: from its coordinates to pixels."""
    plane = np.zeros((side, side), np.uint8)
    for outlines, value in ((shape.solids, 255), (shape.holes, 0)):
        for outline in outlines:
            _fill(plane, place(outline), value)
    return plane


def _fill(plane: Pixels, points: Points, value: int) -> None:
    cv2.fillPoly(plane, [np.round((points - 0.5) * 16).astype(np.int32)], value, shift=4)


def _relief(cover: Plane, light: float) -> Plane:
    """Return the brightness of a rounded body: its edge distance as height, lit from ``light``."""
    side = len(cover)
    distance = cv2.distanceTransform((cover >= 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    height = blur(np.sqrt(np.minimum(distance, 0.08 * side) / (0.08 * side)), 0.01 * side)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0) * side / 400
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1) * side / 400
    facing = slope_x * np.cos(light) + slope_y * np.sin(light)
    # The light comes from `light`, so a surface rising away from it is bright.
    return np.asarray(np.clip(1 - 0.9 * facing, 0.45, 1.5), np.float32)


def _shifted_blur(cover: Plane, shift: npt.NDArray[np.float64], sigma: float) -> Plane:
    matrix = np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]])
    moved = cv2.warpAffine(cover, matrix, cover.shape[::-1])
    return blur(np.asarray(moved, np.float32), sigma)


def _photograph(picture: RGB, draw: np.random.Generator) -> Pixels:
    """Return the picture as a camera has it: exposure, white balance, vignette, blur, noise."""
    side = len(picture)
    gain = draw.uniform(0.8, 1.15) * draw.uniform(0.92, 1.08, 3).astype(np.float32)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    vignette = 1 - draw.uniform(0, 0.6) * (x * x + y * y)
    picture = picture * (gain * vignette[..., None])
    picture = blur(picture, draw.uniform(0.25, 0.6))
    grain = draw.standard_normal((side, side, 3), np.float32)
    level = draw.uniform(0.005, 0.03)
    noisy = picture + level * np.sqrt(np.clip(picture, 0.05, 1)) * grain
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
