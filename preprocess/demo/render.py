"""One image of the demo set: an object with exact mask in front of an unrelated scene."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from harl_fast.rng import SYNTHESIS, stream
from preprocess.arrays import Mask, Pixels
from preprocess.demo.scenes import Picture, Plane, background, blur, colour, mix, noise
from preprocess.demo.shapes import SHAPES, Points, Shape

SUPERSAMPLING = 4
"""Outlines are filled at this many times the image's side and averaged: 17 levels of coverage."""
SCENE, OBJECT, CAMERA = 0, 1, 2
"""The layers' streams: what is drawn for one never moves another."""


@dataclass(frozen=True)
class Rendered:
    """An image (S, S, 3) uint8 and the mask (S, S) bool of pixels at least half object."""

    image: Pixels
    mask: Mask


def render(seed: int, index: int, *, kind: str, split: int, side: int) -> Rendered:
    """Return one image, a function of the arguments alone.

    kind: a key of `SHAPES`. split: 0 training, 1 held out. The scene, the object's pose, colour
    and surface, and the camera's noise do not depend on ``kind``.
    """
    draws = [
        np.random.Generator(np.random.Philox(int(stream(seed, split, index, layer, SYNTHESIS))))
        for layer in (SCENE, OBJECT, CAMERA)
    ]
    scene = background(draws[SCENE], side)
    surface, pose = _surface(draws[OBJECT], scene), _pose(draws[OBJECT], side)
    light, shadow = draws[OBJECT].uniform(0, 2 * np.pi), draws[OBJECT].uniform(0.02, 0.07)
    # The shape's own draws come last: they differ in number from kind to kind.
    cover, shade = _filled(SHAPES[kind](draws[OBJECT]), pose, side)
    away = -shadow * side * np.array([np.cos(light), np.sin(light)])
    picture = scene * (1 - 0.55 * _shifted_blur(cover, away, 0.03 * side))[..., None]
    body = surface * (shade * _relief(cover, light))[..., None]
    picture = mix(cover, picture, body)
    return Rendered(_photograph(picture, draws[CAMERA]), cover >= 0.5)


def _surface(draw: np.random.Generator, scene: Picture) -> Picture:
    """Return the object's colour over the whole frame: a tint with stripes, spots or grain."""
    side = len(scene)
    middle = scene[side // 4 : -side // 4, side // 4 : -side // 4].mean((0, 1))
    first = colour(draw, vivid=1.0)
    for _ in range(8):  # an object in the scene's own colour could not be seen by anyone
        if np.abs(first - middle).max() > 0.25:
            break
        first = colour(draw, vivid=1.0)
    pattern, strength = int(draw.integers(4)), draw.uniform(0.15, 0.5)
    grain = noise(draw, side, cells=draw.uniform(6, 20), octaves=4)
    angle, waves = draw.uniform(0, np.pi), draw.uniform(6, 16)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    across = x * np.cos(angle) + y * np.sin(angle) + 0.05 * grain
    share = (
        0.5 * grain,
        grain,
        np.sin(2 * np.pi * waves * across) > 0.2,
        noise(draw, side, cells=14, octaves=1) > 0.62,
    )[pattern]
    tint = np.asarray(share, np.float32) * strength + 0.12 * grain
    return mix(tint, first, colour(draw, vivid=1.0))


def _pose(draw: np.random.Generator, side: int) -> npt.NDArray[np.float64]:
    """Return the 2 x 3 map from shape to image coordinates: turned, sheared, mirrored, scaled."""
    radius = draw.uniform(0.24, 0.4) * side
    angle, shear = draw.uniform(-0.6, 0.6), draw.uniform(-0.2, 0.2)
    aspect, mirror = np.exp(draw.uniform(-0.2, 0.2)), draw.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = radius * turn @ np.array([[mirror * aspect, shear], [0.0, 1 / aspect]])
    room = max(0.5 * side - 0.95 * radius, 0.0)
    centre = 0.5 * side + draw.uniform(-room, room, 2)
    return np.column_stack([matrix, centre])


def _filled(shape: Shape, pose: npt.NDArray[np.float64], side: int) -> tuple[Plane, Plane]:
    """Return the object's coverage in [0, 1] and its parts' brightness factor, both (S, S)."""
    fine = side * SUPERSAMPLING
    solid = np.zeros((fine, fine), np.uint8)
    for outline in shape.solids:
        _fill(solid, outline, pose, 255)
    for outline in shape.holes:
        _fill(solid, outline, pose, 0)
    marks = np.full((fine, fine), 100, np.uint8)
    for outline, factor in shape.parts:
        _fill(marks, outline, pose, round(100 * factor))
    cover, shade = (
        np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA), np.float32)
        for plane in (solid, marks)
    )
    return cover / np.float32(255), shade / np.float32(100)


def _fill(plane: Pixels, outline: Points, pose: npt.NDArray[np.float64], value: int) -> None:
    points = (outline @ pose[:, :2].T + pose[:, 2]) * SUPERSAMPLING - 0.5
    cv2.fillPoly(plane, [np.round(points * 16).astype(np.int32)], value, shift=4)


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


def _photograph(picture: Picture, draw: np.random.Generator) -> Pixels:
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
