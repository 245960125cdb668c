"""Training batches: crops of the user's images, and objects cut from one and pasted on another.

A pasted object has an exact mask, however noisy the vote that cut it out was, and it may stand
anywhere: so the network learns outlines sharper than its teachers', and not merely the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.images.arrays import Map, Pixels

Draw = np.random.Generator
Box = tuple[float, float, float, float]
"""Left, top, width, height in sides of the image; a negative width mirrors."""

UNHEARD = 128
"""Stands in for a member's map that the network is not shown."""


@dataclass(frozen=True)
class TrainingSet:
    """The images and what is believed about them, as large as memory allows."""

    images: Pixels
    """(N, S, S, 3) RGB."""
    targets: Pixels
    """(N, S/2, S/2): belief in foreground, 255 is certainty."""
    opinions: Pixels
    """(N, M, S/2, S/2): the members' own maps, which the network sees some of."""
    trust: Map
    """(N,) in [0, 1]: how far an image's target is believed as a whole; 0 leaves it out."""


@dataclass(frozen=True)
class Variety:
    """How much images are changed on their way into a batch."""

    least_area: float = 0.5
    """Smallest crop, as a share of the image's area; the largest is all of it."""
    paste: float = 0.15
    """Share of samples that get another image's object pasted in."""
    clear: float = 0.7
    """Share of those whose background is a crop of the image's background only."""
    deaf: float = 0.3
    """Share of samples without any member's map; of pasted ones no member ever saw the picture."""
    mute: float = 0.3
    """Probability that a member is left out of the rest: or the network would repeat them all."""
    grey: float = 0.12
    blur: float = 0.15
    donor_trust: float = 0.75
    """Only images trusted at least this far give objects away ..."""
    donor_share: tuple[float, float] = (0.04, 0.6)
    """... whose object covers a share of the image between these."""


class Drawn(NamedTuple):
    """A batch: pixels (B, S, S, 3) uint8; the rest float32 in [0, 1], (B, S/2, S/2) ..."""

    pixels: Pixels
    target: Map
    weight: Map
    opinions: Map
    """... or (B, M, S/2, S/2)."""


class Augmenter:
    """Draws batches; the same draws for the same generator state."""

    def __init__(self, training_set: TrainingSet, variety: Variety) -> None:
        self.training_set, self.variety = training_set, variety
        self.side = training_set.images.shape[1]
        shares = training_set.targets.mean(axis=(1, 2)) / 255
        low, high = variety.donor_share
        sound = (shares >= low) & (shares <= high)
        level = min(variety.donor_trust, float(np.quantile(training_set.trust, 0.6)))
        self.donors = np.flatnonzero(sound & (training_set.trust >= level))
        self.backgrounds = np.flatnonzero(training_set.trust >= level)
        self.usable = np.flatnonzero(training_set.trust > 0)

    def draw(self, indices: npt.NDArray[np.int64], draw: Draw) -> Drawn:
        """Return the altered images of some indices."""
        samples = (self._sample(int(index), draw) for index in indices)
        images, target, weight, maps = map(np.stack, zip(*samples, strict=True))
        pixels = _recolour(images.astype(np.float32), draw, self.variety.grey)
        return Drawn(pixels, target, weight, maps.astype(np.float32) / np.float32(255))

    def _sample(self, index: int, draw: Draw) -> tuple[Pixels, Map, Map, Pixels]:
        variety = self.variety
        pastes = draw.random() < variety.paste and len(self.donors) > 1
        if pastes and draw.random() < variety.clear:
            index, box = self._background(draw)
        else:
            box = self._crop(draw)
        image, target, heard = self._warp(index, box, draw)
        # Cells on which the vote is split teach nothing.
        weight = np.asarray(self.training_set.trust[index] * np.abs(2 * target - 1), np.float32)
        heard[draw.random(len(heard)) < variety.mute] = UNHEARD
        if pastes:
            image, target, weight = self._paste(image, target, weight, draw)
        if pastes or draw.random() < variety.deaf:
            heard[:] = UNHEARD
        if draw.random() < variety.blur:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), draw.uniform(0.4, 1.6)), np.uint8)
        return image, target, weight, heard

    def _crop(self, draw: Draw) -> Box:
        area = draw.uniform(self.variety.least_area, 1.0)
        stretch = np.exp(draw.uniform(-0.25, 0.25))
        width, height = min(1.0, np.sqrt(area * stretch)), min(1.0, np.sqrt(area / stretch))
        return draw.uniform(0, 1 - width), draw.uniform(0, 1 - height), width, height

    def _background(self, draw: Draw) -> tuple[int, Box]:
        """Return an image and the largest of some random boxes in it that hold no object."""
        index = int(draw.choice(self.backgrounds))
        target = self.training_set.targets[index]
        sums = cv2.integral(target)
        side = len(target)
        best, box = -np.inf, (0.0, 0.0, 1.0, 1.0)
        for _ in range(16):
            width, height = draw.uniform(0.2, 1.0, 2)
            left, top = draw.uniform(0, 1 - width), draw.uniform(0, 1 - height)
            x0, y0 = int(left * side), int(top * side)
            x1, y1 = int((left + width) * side), int((top + height) * side)
            inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
            cells = max((x1 - x0) * (y1 - y0), 1)
            value = width * height - 10 * inside / cells / 255
            if value > best:
                best, box = value, (left, top, width, height)
        return index, box

    def _warp(self, index: int, box: Box, draw: Draw) -> tuple[Pixels, Map, Pixels]:
        """Return a box of an image, of its target and of the members' maps, mirrored or not."""
        left, top, width, height = box
        if draw.random() < 0.5:
            left, width = left + width, -width
        box = (left, top, width, height)
        image = _cut(self.training_set.images[index], *box)
        target = _cut(self.training_set.targets[index], *box).astype(np.float32) / np.float32(255)
        return image, target, np.stack([_cut(m, *box) for m in self.training_set.opinions[index]])

    def _paste(
        self, image: Pixels, target: Map, weight: Map, draw: Draw
    ) -> tuple[Pixels, Map, Map]:
        """Return the sample with another image's object at a random place and size."""
        donor = int(draw.choice(self.donors))
        zoom, stretch = np.exp(draw.uniform(-0.4, 0.6)), np.exp(draw.uniform(-0.15, 0.15))
        width, height = zoom * stretch, zoom / stretch
        # The object's middle goes anywhere in the middle 70 % of the picture.
        cells = self.training_set.targets[donor] > 127
        rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
        side = len(cells)
        middle_y = (rows[0] + rows[-1] + 1) / 2 / side if len(rows) else 0.5
        middle_x = (columns[0] + columns[-1] + 1) / 2 / side if len(columns) else 0.5
        x, y = draw.uniform(0.15, 0.85, 2)
        if draw.random() < 0.5:
            width = -width
        box = (middle_x - x * width, middle_y - y * height, width, height)
        donor_image = _cut(self.training_set.images[donor], *box, border=cv2.BORDER_REPLICATE)
        soft = _cut(self.training_set.targets[donor], *box).astype(np.float32) / np.float32(255)
        inside = _inside(box, side)
        alpha = np.clip(4 * (soft - 0.5) + 0.5, 0, 1) * inside
        fine = cv2.resize(alpha, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        lit = donor_image * draw.uniform(0.85, 1.15)
        mixed = image + fine[..., None] * (np.clip(lit, 0, 255) - image)
        target = target + alpha * (1 - target)
        return mixed.astype(np.uint8), target, np.maximum(weight, alpha.round())


def _cut(
    values: Pixels,
    left: float,
    top: float,
    width: float,
    height: float,
    *,
    border: int = cv2.BORDER_CONSTANT,
) -> Pixels:
    """Return a box, in sides, of (S, S[, 3]) values as (S, S[, 3]); a negative width mirrors."""
    side = len(values)
    # Pixel centres: output x + 0.5 is source (left * side) + width * (x + 0.5).
    matrix = np.array(
        [
            [width, 0, left * side + 0.5 * width - 0.5],
            [0, height, top * side + 0.5 * height - 0.5],
        ],
        np.float32,
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(values, matrix, (side, side), flags=flags, borderMode=border), np.uint8
    )


def _inside(box: Box, side: int) -> Map:
    """Return 1 where a box's cells come from inside the image, 0 elsewhere."""
    left, top, width, height = box
    line = (np.arange(side) + 0.5) / side
    x, y = left + width * line, top + height * line
    within = ((y > 0) & (y < 1))[:, None] & ((x > 0) & (x < 1))
    return within.astype(np.float32)


def _recolour(pixels: Map, draw: Draw, grey: float) -> Pixels:
    """Return (B, S, S, 3) pixels in other light: brightness, contrast, colour."""
    count = len(pixels)
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    saturation = draw.uniform(0.4, 1.5, count) * (draw.random(count) >= grey)
    identity = np.eye(3)
    mix = saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * luma
    gains = np.exp(draw.normal(0, 0.08, (count, 3))) * np.exp(draw.normal(0, 0.2, (count, 1)))
    matrix = (gains[:, :, None] * mix).astype(np.float32)
    contrast = np.exp(draw.normal(0, 0.2, count)).astype(np.float32)
    middle = pixels.mean(axis=(1, 2))
    offset = middle - contrast[:, None] * middle
    flat = pixels.reshape(count, -1, 3) * contrast[:, None, None] + offset[:, None]
    changed = np.matmul(flat, matrix.transpose(0, 2, 1))
    return np.asarray(np.clip(changed, 0, 255).reshape(pixels.shape), np.uint8)
