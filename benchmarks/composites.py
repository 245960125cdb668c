"""Pictures with exact masks: drawn objects before drawn scenes, and cut-outs before real photos.

A drawn picture is a function of its index and seed alone. Unlike the demo set's, its frame is no
square, its object may be small, off the centre or cut by the edge, and there may be two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.backgrounds import background
from harl_fast.errors import DataError
from harl_fast.rng import SYNTHESIS, stream
from preprocess.demo.paint import RGB, Plane, blur, colour, mix, noise
from preprocess.demo.shapes import SHAPES
from preprocess.images.arrays import Mask, Pixels

SIDE_PX = 300
FRAMES = ((225, 300), (300, 225), (300, 300), (200, 300), (240, 300), (300, 200))
"""Height and width of the frames, in turn, for a longest side of `SIDE_PX`."""
FINE = 4
"""Outlines are filled at this many times the frame's side and averaged."""
LEAST, MOST = 0.02, 0.6
"""Shares of the frame that a mask may cover."""
TRIES = 60
TWO_P = 0.2
"""Share of drawn pictures with two objects."""
QUALITY = 92
DRAWN, STAMPED = 2, 3
"""First coordinate of the streams; the demo set's are 0 and 1."""
COLOURS, CUT_LEAST, CUT_MOST, CUT_SIDE_PX = 1200, 0.03, 0.97, 96
"""A photo-like cut-out has more distinct 6-bit colours, this coverage, and this shorter side."""


@dataclass(frozen=True)
class Composite:
    """A picture (H, W, 3) uint8 RGB and its mask (H, W) bool: pixels at least half object."""

    image: Pixels
    mask: Mask


def composite(index: int, *, seed: int = 0, side_px: int = SIDE_PX) -> Composite:
    """Return one drawn picture; its longest side has ``side_px`` pixels."""
    draw = _generator(seed, DRAWN, index)
    height, width = (round(n * side_px / SIDE_PX) for n in FRAMES[index % len(FRAMES)])
    scene = background(draw, side_px)[:height, :width]
    kinds = list(SHAPES)
    count = 2 if draw.random() < TWO_P else 1
    for _ in range(TRIES):
        covers = [
            _placed(kinds[int(draw.integers(len(kinds)))], draw, height, width, count)
            for _ in range(count)
        ]
        cover = np.maximum.reduce(covers)
        if LEAST <= (cover >= 0.5).mean() <= MOST:
            break
    else:
        raise RuntimeError(f"composite {index} of seed {seed}: no object fits in {TRIES} tries")
    picture = scene
    for each in covers:
        shadow = _moved(each, draw.uniform(-0.04, 0.04, 2) * side_px, 0.02 * side_px)
        picture = picture * (1 - draw.uniform(0, 0.5) * shadow)[..., None]
    surface = _surface(draw, scene, side_px)
    for each in covers:
        picture = mix(each, picture, surface * _relief(each, draw)[..., None])
    return Composite(_photograph(picture, draw), cover >= 0.5)


def composites(count: int, *, seed: int = 0) -> list[Composite]:
    """Return the first ``count`` drawn pictures of a seed."""
    return [composite(index, seed=seed) for index in range(count)]


def load_stamps(folder: Path) -> list[Pixels]:
    """Return the photo-like cut-outs below a folder, by path: (h, w, 4) uint8 RGBA each.

    Drawings slip through the filter: a folder checked by eye is better. Raises DataError when
    none is left.
    """
    found = []
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            if min(image.size) < CUT_SIDE_PX or image.mode not in ("RGBA", "LA", "P", "PA"):
                continue
            rgba = np.asarray(image.convert("RGBA"))
        opaque = rgba[..., 3] > 127
        words = (rgba[opaque][:, :3] >> 2).astype(np.int64) @ [4096, 64, 1]
        if CUT_LEAST <= opaque.mean() <= CUT_MOST and len(np.unique(words)) > COLOURS:
            found.append(rgba)
    if len(found) < 2:
        raise DataError(
            f"{folder} holds {len(found)} photo-like cut-outs: give RGBA PNGs of {CUT_SIDE_PX} px "
            f"and more with over {COLOURS:,} colours"
        )
    return found


def stamped(
    index: int,
    stamps: Sequence[Pixels],
    photos: Sequence[Path],
    *,
    seed: int = 0,
) -> Composite:
    """Return one cut-out before a crop of a photo, alpha-blended; square of `SIDE_PX`.

    Even indices take even stamps and photos, odd ones odd: no stamp or photo is in both halves.
    The stamp's longer side is 45 to 85 % of the frame, its place free.
    """
    draw, half = _generator(seed, STAMPED, index), index % 2
    for _ in range(TRIES):
        stamp = stamps[half::2][int(draw.integers(len(stamps[half::2])))]
        photo = photos[half::2][int(draw.integers(len(photos[half::2])))]
        scale = draw.uniform(0.45, 0.85) * SIDE_PX / max(stamp.shape[:2])
        height, width = (max(1, round(n * scale)) for n in stamp.shape[:2])
        # Premultiplied: the colours under transparent pixels are arbitrary and must not bleed in.
        alpha = stamp[..., 3:].astype(np.float32) / 255
        premultiplied = np.concatenate([stamp[..., :3] * alpha, alpha], axis=2)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(premultiplied, (width, height), interpolation=how)
        top = int(draw.integers(SIDE_PX - height + 1))
        left = int(draw.integers(SIDE_PX - width + 1))
        cover = np.zeros((SIDE_PX, SIDE_PX), np.float32)
        cover[top : top + height, left : left + width] = small[..., 3]
        if not LEAST <= (cover >= 0.5).mean() <= MOST:
            continue
        picture = _backdrop(photo, draw, SIDE_PX).astype(np.float32) * (1 - cover[..., None])
        picture[top : top + height, left : left + width] += small[..., :3]
        return Composite(np.clip(picture + 0.5, 0, 255).astype(np.uint8), cover >= 0.5)
    raise RuntimeError(f"composite {index} of seed {seed}: no cut-out fits in {TRIES} tries")


def _generator(seed: int, layer: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(int(stream(seed, layer, index, 0, SYNTHESIS))))


def _placed(kind: str, draw: np.random.Generator, height: int, width: int, count: int) -> Plane:
    """Return the coverage of one object in [0, 1]: any size, turn and place, half of it inside."""
    side = min(height, width)
    radius = side * np.exp(draw.uniform(np.log(0.16), np.log(0.5))) / np.sqrt(count)
    angle, mirror = draw.uniform(-0.7, 0.7), draw.choice([-1.0, 1.0])
    aspect, shear = np.exp(draw.uniform(-0.3, 0.3)), draw.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = radius * turn @ np.array([[mirror * aspect, shear], [0.0, 1 / aspect]])
    centre = np.array([width, height]) * np.clip(draw.normal(0.5, 0.18, 2), 0.1, 0.9)
    shape = SHAPES[kind](draw)
    fine = np.zeros((height * FINE, width * FINE), np.uint8)
    for outlines, value in ((shape.solids, 255), (shape.holes, 0)):
        for outline in outlines:
            points = (outline @ matrix.T + centre) * FINE - 0.5
            cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], value, shift=4)
    cover = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cover, np.float32) / np.float32(255)


def _surface(draw: np.random.Generator, scene: RGB, side: int) -> RGB:
    """Return the objects' colour over the frame: two colours in blotches, stripes or grain."""
    height, width = scene.shape[:2]
    middle, first = scene.mean((0, 1)), colour(draw, vivid=1.0)
    for _ in range(8):  # an object in the scene's own colour could not be seen by anyone
        if np.abs(first - middle).max() > 0.2:
            break
        first = colour(draw, vivid=1.0)
    grain = noise(draw, side, cells=draw.uniform(3, 14), octaves=5)[:height, :width]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / side
    angle = draw.uniform(0, np.pi)
    across = x * np.cos(angle) + y * np.sin(angle) + 0.05 * grain
    stripes = np.sin(2 * np.pi * draw.uniform(6, 16) * across) > draw.uniform(-0.5, 0.7)
    share = (grain, grain > 0.55, stripes, 0.3 * grain)[int(draw.integers(4))]
    tint = np.asarray(share, np.float32) * draw.uniform(0.2, 0.8) + 0.12 * grain
    return mix(tint, first, colour(draw, vivid=1.0))


def _relief(cover: Plane, draw: np.random.Generator) -> Plane:
    """Return the brightness of a body that is darker towards one side of its edge."""
    side = max(cover.shape)
    soft, angle = blur(cover, 0.03 * side), draw.uniform(0, 2 * np.pi)
    slope = np.gradient(soft, axis=1) * np.cos(angle) + np.gradient(soft, axis=0) * np.sin(angle)
    return np.asarray(np.clip(1 - draw.uniform(0, 0.04) * side * slope, 0.5, 1.5), np.float32)


def _moved(cover: Plane, shift: npt.NDArray[np.float64], sigma: float) -> Plane:
    matrix = np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]])
    return blur(np.asarray(cv2.warpAffine(cover, matrix, cover.shape[::-1]), np.float32), sigma)


def _photograph(picture: RGB, draw: np.random.Generator) -> Pixels:
    """Return the picture as a camera and a JPEG leave it: exposure, blur, noise, compression."""
    picture = blur(picture * draw.uniform(0.8, 1.15), draw.uniform(0.3, 0.8))
    noisy = picture + draw.uniform(0.005, 0.03) * draw.standard_normal(picture.shape, np.float32)
    pixels = (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
    data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def _backdrop(photo: Path, draw: np.random.Generator, side: int) -> Pixels:
    """Return a square crop of a photo, 60 to 100 % of its shorter side, at ``side`` pixels."""
    with Image.open(photo) as image:
        rgb = np.asarray(image.convert("RGB"))
    box = max(1, round(min(rgb.shape[:2]) * draw.uniform(0.6, 1.0)))
    top = int(draw.integers(rgb.shape[0] - box + 1))
    left = int(draw.integers(rgb.shape[1] - box + 1))
    how = cv2.INTER_AREA if box > side else cv2.INTER_LINEAR
    crop = cv2.resize(rgb[top : top + box, left : left + box], (side, side), interpolation=how)
    return np.asarray(crop, np.uint8)
