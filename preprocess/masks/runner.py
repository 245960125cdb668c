"""Produces a mask per image: mask file, cache, each method in turn, then a centred ellipse.

`find_masks` does so for a few images in a worker; `fill_split` runs it over a split into a cache.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harl_fast.data.container.fields import pack_mask, unpack_mask
from harl_fast.errors import one_line
from harl_fast.files import Progress
from harl_fast.pool import ordered_map
from preprocess.images.arrays import Map, Mask, Pixels
from preprocess.images.decode import Frame, decode_image, read_mask, shrink, stored_size
from preprocess.images.members import FileRef, ImageRef
from preprocess.images.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.masks import cache
from preprocess.masks.cachefile import CachedMask, Fingerprint, write_masks
from preprocess.masks.controls import CANVAS_PX, flip_cells, to_canvas
from preprocess.masks.heuristic.binary import centre_ellipse
from preprocess.masks.registry import (
    CHUNK,
    INPUT_PX,
    check_maps,
    find_method,
    open_method,
    to_mask,
)
from preprocess.masks.spec import MethodSpec
from preprocess.sources import Split


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
    cached: CachedMask | None = None
    lacking: str = ""
    """Why there is neither, where one of them was asked for."""
    flips: tuple[Flip, ...] = ()


class MaskResult(NamedTuple):
    """A mask in the frame of the upright image."""

    mask: Mask
    """(H, W) out of a file; else square, with a side that divides `CANVAS_PX`."""
    stand_in: bool
    """A centre ellipse, because nothing sound was found."""
    problem: str
    """Why a fall-back serves, and which; empty if none does."""


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

    Mask files and caches come first, then ``methods`` in turn, then the centre ellipse. A method
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
    request, cached = image.request, image.request.cached
    if request.file is not None:
        try:
            return MaskResult(read_mask(request.file, image.frame()), False, "")
        except UnusableImageError as error:
            return str(error)
    if cached is None:
        return request.lacking
    if isinstance(request.image, np.ndarray) or not cached.image.fits(request.image):
        return f"{request.name} has changed since its mask was made"
    if not cached.bits:
        return cached.problem
    mask = unpack_mask(np.frombuffer(cached.bits, np.uint8), size=CANVAS_PX)
    return MaskResult(mask, cached.stand_in, cached.problem)


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
    made = (_on_canvas(spec, answer) for answer in _tried(spec, pixels))
    return [next(made) if answer is None else answer for answer in answers]


@functools.lru_cache(maxsize=CHUNK)
def _fixed(spec: MethodSpec, size: tuple[int, int]) -> tuple[Mask, bool] | str:
    """Return the mask of a method that does not look at pixels, the same array each time."""
    (answer,) = _tried(spec, [np.zeros((*size, 3), np.uint8)])
    return _on_canvas(spec, answer)


def _on_canvas(spec: MethodSpec, answer: Map | str) -> tuple[Mask, bool] | str:
    if isinstance(answer, str):
        return answer
    mask, stand_in = to_mask(spec, answer)
    return (to_canvas(mask) if CANVAS_PX % len(mask) else mask), stand_in


def _tried(spec: MethodSpec, images: list[Pixels]) -> list[Map | str]:
    if not images:
        return []
    maps = open_method(spec)
    try:
        softs = maps(images)
        check_maps(softs, count=len(images))
    except Exception as error:  # noqa: BLE001  # one image must not end a run; reports list it
        if len(images) > 1:
            return [answer for image in images for answer in _tried(spec, [image])]
        return [f"{spec.name}: {type(error).__name__}: {error}"]
    return list(softs)


def make_masks(
    tasks: list[tuple[str, FileRef]],
    methods: tuple[MethodSpec, ...],
    *,
    max_resolution: int,
    reading: Reading = DEFAULT_READING,
) -> list[CachedMask]:
    """Return the masks of some images by name and place, for a cache; what a worker does."""
    made: list[CachedMask] = []
    images: list[LazyImage] = []
    for name, file in tasks:
        image = LazyImage(MaskRequest(name, file), side_px=max_resolution, reading=reading)
        found_as, problem = cache.NO_FILE, ""
        try:
            found_as = Fingerprint.of(file)  # before the pixels, lest a change go unnoticed
            image.pixels()
            images.append(image)
        except (UnusableImageError, OSError) as error:
            problem = f"the image does not read: {error}"
        made.append(CachedMask(name, b"", False, problem, found_as))
    found = iter(find_masks(images, methods))
    for place, one in enumerate(made):
        if not one.problem:
            mask, stand_in, problem = next(found)
            bits = pack_mask(to_canvas(mask)).tobytes()
            made[place] = one._replace(bits=bits, stand_in=stand_in, problem=problem)
    return made


MakeMasks = Callable[[list[tuple[str, FileRef]]], list[CachedMask]]
"""`make_masks` with its settings."""


def fill_split(
    folder: Path,
    name: str,
    split: Split,
    make: MakeMasks,
    *,
    key: str,
    shard: tuple[int, int],
    workers: int,
) -> None:
    """Make the cache files of one split that belong to a shard and are missing or stale.

    folder, key: of the cache. shard: I, N of the I-th of N.
    """
    size = cache.FILE_IMAGES
    count = -(-len(split.names) // size)
    own = range(shard[0] - 1, count, shard[1])
    todo: dict[Path, list[tuple[str, FileRef]]] = {}
    reasons = Counter[str]()
    for number in own:
        path = cache.file_path(folder, name, number)
        rows = range(number * size, min((number + 1) * size, len(split.names)))
        tasks = [(split.names[row], split.file(row)) for row in rows]
        if why := cache.stale(path, tasks, key=key):
            todo[path] = tasks
            reasons[why] += why != "missing"
    for why, files in (+reasons).items():
        print(f"{name}: made again: {files} file(s): {one_line(why)}")
    cache.tidy(folder / name, own, count=count)
    masks = _made(todo, make, label=f"masks of {name}", key=key, workers=workers)
    _summarise(name, masks, kept=len(own) - len(todo), files=len(own))
    if count > len(own):
        print(f"  {count - len(own)} files belong to other shards")


def _made(
    files: dict[Path, list[tuple[str, FileRef]]],
    make: MakeMasks,
    *,
    label: str,
    key: str,
    workers: int,
) -> Iterator[CachedMask]:
    """Write each file with the masks of the images named, and yield these masks."""
    if not files:
        return
    chunks = [
        tasks[start : start + CHUNK]
        for tasks in files.values()
        for start in range(0, len(tasks), CHUNK)
    ]
    results = ordered_map(
        make,
        chunks,
        workers=min(workers, len(chunks)),
        describe=lambda task: f"{task[0][0]} to {task[-1][0]}",
    )
    with contextlib.closing(results), Progress(sum(map(len, chunks)), label=label) as progress:
        for path, tasks in files.items():
            masks: list[CachedMask] = []
            while len(masks) < len(tasks):
                made = next(results)
                masks += made
                progress.advance(len(made))
            write_masks(path, masks, key=key)
            yield from masks


def _summarise(name: str, masks: Iterator[CachedMask], *, kept: int, files: int) -> None:
    start, count, counts, first = time.monotonic(), 0, Counter[str](), ""
    for mask in masks:
        count += 1
        counts["unreadable images"] += not mask.bits
        counts["centre ellipses"] += mask.stand_in
        counts["fall-backs"] += bool(mask.problem) and bool(mask.bits)
        first = first or (mask.problem and f"{mask.name}: {mask.problem}")
    seconds = max(time.monotonic() - start, 1e-9)
    shares = ", ".join(f"{what} {n:,} ({n / count:.1%})" for what, n in counts.items() if count)
    print(f"{name}: {files} files of masks, {kept} of them there before", flush=True)
    if count:
        print(f"  {count:,} masks made now, {count / seconds:,.0f} images/s; {shares}")
    if first:
        print(f"  first problem: {one_line(first)}")
