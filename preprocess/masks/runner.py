"""Produces a mask per image: mask file, each method in turn, then a centred ellipse."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocess.images.arrays import Map, Mask, Pixels
from preprocess.images.decode import Frame, decode_image, read_mask, shrink, stored_size
from preprocess.images.members import ImageRef
from preprocess.images.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.masks.controls import CANVAS_PX, flip_cells, to_canvas
from preprocess.masks.heuristic.binary import centre_ellipse
from preprocess.masks.maskfile import find_made
from preprocess.masks.registry import (
    CHUNK,
    INPUT_PX,
    check_maps,
    find_method,
    open_method,
    to_mask,
)
from preprocess.masks.spec import MethodSpec


class Flip(NamedTuple):
    """Arguments of `flip_cells`."""

    share: float
    grid: int
    seed: int
    position: int


class MaskRequest(NamedTuple):
    """Which mask an image gets: mostly its own, a control's another image's."""

    name: str
    image: ImageRef
    """The image that the mask belongs to."""
    file: Path | None = None
    """Its mask's file, whether it exists or not."""
    key: str = ""
    """Of the tree, if `make masks` made it, see `MaskTree.key`."""
    lacking: str = ""
    """Why there is no file, where one was asked for."""
    flips: tuple[Flip, ...] = ()


class MaskResult(NamedTuple):
    """A mask in the frame of the upright image."""

    mask: Mask
    """(H, W) out of a file; else square, with a side that divides `CANVAS_PX`."""
    stand_in: bool
    """A centre ellipse, because nothing sound was found."""
    problem: str
    """Why a fall-back serves, and which; empty if none does."""
    edited: bool = False
    """A user's own file in a tree that `make masks` made."""


class LazyImage:
    """An image that needs a mask; decoded only when something asks for its pixels."""

    def __init__(
        self,
        request: MaskRequest,
        *,
        side_px: int,
        reading: Reading = DEFAULT_READING,
        frame: Frame | None = None,
        rgb: Pixels | None = None,
    ) -> None:
        """Take an image; its ``frame`` and its stored pixels ``rgb`` if they are known already.

        The pixels that a file decodes to are not kept: a chunk of images may be large.
        """
        self.request, self._side_px, self._reading = request, side_px, reading
        self._frame = frame
        self._rgb = None if rgb is None else shrink(rgb, side_px=INPUT_PX)

    def frame(self) -> Frame:
        """Return how the file holds the image; raises `UnusableImageError`."""
        if self._frame is None:
            self._load()
        assert self._frame is not None
        return self._frame

    def pixels(self) -> Pixels:
        """Return what methods look at, see `INPUT_PX`; raises `UnusableImageError`."""
        if self._rgb is None:
            self._load()
        assert self._rgb is not None
        return self._rgb

    def size(self) -> tuple[int, int]:
        """Return the (height, width) of `pixels`, without decoding them."""
        orientation, (width, height) = self.frame()
        upright = (width, height) if orientation >= 5 else (height, width)
        return stored_size(*stored_size(*upright, side_px=self._side_px), side_px=INPUT_PX)

    def _load(self) -> None:
        decoded = decode_image(self.request.image, side_px=self._side_px, reading=self._reading)
        self._frame = decoded.frame
        self._rgb = shrink(shrink(decoded.rgb, side_px=self._side_px), side_px=INPUT_PX)


def find_masks(images: Sequence[LazyImage], methods: Sequence[MethodSpec]) -> list[MaskResult]:
    """Return each image's mask, with its cells flipped where asked for.

    Mask files come first, then ``methods`` in turn, then the centre ellipse. A method
    gets all images that still need a mask in one call.
    """
    results: list[MaskResult | None] = []
    problems: list[list[str]] = []
    for image in images:
        given = _existing(image)
        results.append(given if isinstance(given, MaskResult) else None)
        problems.append([given] if isinstance(given, str) and given else [])
    for spec in methods:
        rest = [place for place, result in enumerate(results) if result is None]
        for place, answer in zip(rest, _masks(spec, [images[p] for p in rest]), strict=True):
            if isinstance(answer, str):
                problems[place].append(answer)
                continue
            mask, stand_in = answer
            why = [*problems[place], f"{spec.name} serves"] if problems[place] else []
            results[place] = MaskResult(mask, stand_in, "; ".join(why))
    found = []
    for image, result, why in zip(images, results, problems, strict=True):
        if result is None:
            ellipse = centre_ellipse(CANVAS_PX)
            result = MaskResult(ellipse, True, "; ".join([*why, "the centre ellipse serves"]))
        for flip in image.request.flips:
            result = result._replace(mask=flip_cells(result.mask, **flip._asdict()))
        found.append(result)
    return found


def _existing(image: LazyImage) -> MaskResult | str:
    """Return a mask that exists already, or why there is none."""
    request = image.request
    if request.file is None:
        return request.lacking
    try:
        made = find_made(request.file, request.image, key=request.key) if request.key else None
        if made is None:
            own = read_mask(request.file, image.frame())
            return MaskResult(own, False, "", edited=bool(request.key))
    except UnusableImageError as error:
        return str(error)
    return MaskResult(made.mask, made.record.stand_in, made.record.problem)


def _masks(spec: MethodSpec, images: Sequence[LazyImage]) -> list[tuple[Mask, bool] | str]:
    """Return each image's `to_mask`, or what went wrong with it alone."""
    answers: list[tuple[Mask, bool] | str | None] = []
    pixels: list[Pixels] = []
    fixed = find_method(spec.name).fixed
    for image in images:
        try:
            if fixed:
                answers.append(_fixed(spec, image.size()))
            else:
                pixels.append(image.pixels())
                answers.append(None)
        except UnusableImageError as error:
            answers.append(f"{image.request.name}: {error}")
    made = (_on_canvas(spec, answer) for answer in maps_of(spec, pixels))
    return [next(made) if answer is None else answer for answer in answers]


@functools.lru_cache(maxsize=CHUNK)
def _fixed(spec: MethodSpec, size: tuple[int, int]) -> tuple[Mask, bool] | str:
    """Return the mask of a method that does not look at pixels, the same array each time."""
    (answer,) = maps_of(spec, [np.zeros((*size, 3), np.uint8)])
    return _on_canvas(spec, answer)


def _on_canvas(spec: MethodSpec, answer: Map | str) -> tuple[Mask, bool] | str:
    if isinstance(answer, str):
        return answer
    mask, stand_in = to_mask(spec, answer)
    return (to_canvas(mask) if CANVAS_PX % len(mask) else mask), stand_in


def maps_of(spec: MethodSpec, images: list[Pixels]) -> list[Map | str]:
    """Return each image's map, or what went wrong with it alone."""
    if not images:
        return []
    maps = open_method(spec)
    try:
        softs = maps(images)
        check_maps(softs, count=len(images))
    except Exception as error:  # noqa: BLE001  # one image must not end a run; reports list it
        if len(images) > 1:
            return [answer for image in images for answer in maps_of(spec, [image])]
        return [f"{spec.name}: {type(error).__name__}: {error}"]
    return list(softs)
