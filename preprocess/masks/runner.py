"""What a worker does to get masks: from where the list says, else by fall-backs, never none."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harl_fast.data.container.maskfield import unpack_mask
from harl_fast.files import open_regular
from preprocess.images import (
    FILE_LIMIT,
    Frame,
    Pixels,
    UnusableImageError,
    decode_image,
    read_mask,
    shrink,
)
from preprocess.masks.binary import Map, Mask, centre_ellipse
from preprocess.masks.controls import CANVAS_PX, flip_cells, to_canvas
from preprocess.masks.registry import check_maps, open_method, to_mask
from preprocess.masks.spec import MethodSpec
from preprocess.reading import DEFAULT_READING, Reading

CHUNK = 16
"""Images that methods are given at a time, everywhere: a network's rounding may depend on the
images beside one. About 0.1 s of work for a worker, 2 MB of result."""
INPUT_PX = 512
"""Masks are made from the stored image (upright, shrunk to max_resolution), shrunk to this longest
side: it bounds the memory of a chunk, and no method looks at more."""


class Flip(NamedTuple):
    """Arguments of `flip_cells`."""

    share: float
    grid: int
    seed: int
    position: int


class Fingerprint(NamedTuple):
    """What tells an image file from a changed one: same size, and same time or same content."""

    size: int
    mtime_ns: int
    crc: int
    """CRC-32 of the file."""

    @staticmethod
    def of(path: Path) -> Fingerprint:
        """Return a file's fingerprint; reads it whole."""
        status = path.stat()
        return Fingerprint(status.st_size, status.st_mtime_ns, _crc_of(path))

    def fits(self, path: Path) -> bool:
        """Return whether a file is unchanged; reads it only if its time is another, as a copy's."""
        try:
            status = path.stat()
            return status.st_size == self.size and (
                status.st_mtime_ns == self.mtime_ns or _crc_of(path) == self.crc
            )
        except OSError:
            return False


def _crc_of(path: Path) -> int:
    crc = 0
    with open_regular(path, limit=FILE_LIMIT) as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


class CachedMask(NamedTuple):
    """A mask out of a cache."""

    bits: bytes
    """`pack_mask` at `CANVAS_PX`; empty if the image could not be read."""
    stand_in: bool
    problem: str
    of: Fingerprint


class MaskRequest(NamedTuple):
    """Which mask an image gets: mostly its own, a control's another image's."""

    name: str
    image: Path | Pixels
    """The image that the mask belongs to."""
    file: Path | None = None
    """Its mask's file, whether it exists or not."""
    kept: CachedMask | None = None
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
    """An image that a mask is wanted of; decoded only when something asks for it."""

    def __init__(
        self,
        wanted: MaskRequest,
        *,
        side_px: int,
        reading: Reading = DEFAULT_READING,
        frame: Frame | None = None,
        rgb: Pixels | None = None,
    ) -> None:
        """Take an image; its ``frame`` and its stored pixels ``rgb`` if they are known already.

        The pixels that a file decodes to are not kept: a chunk of images may be large.
        """
        self.wanted = wanted
        self._side_px = side_px
        self._reading = reading
        self._frame = frame
        self._rgb = None if rgb is None else _for_masks(rgb)

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

    def _load(self) -> None:
        image = self.wanted.image
        if isinstance(image, np.ndarray):
            self._frame, rgb = Frame(1, image.shape[1::-1]), image
        else:
            decoded = decode_image(image, side_px=self._side_px, reading=self._reading)
            self._frame, rgb = decoded.frame, decoded.rgb
        self._rgb = _for_masks(shrink(rgb, side_px=self._side_px))


def _for_masks(rgb: Pixels) -> Pixels:
    return shrink(rgb, side_px=INPUT_PX)


def find_masks(origins: Sequence[LazyImage], methods: Sequence[MethodSpec]) -> list[MaskResult]:
    """Return each image's mask, with its cells flipped where asked for.

    Mask files and caches come first, then ``methods`` in turn, then the centre ellipse. A method
    gets all images that still want a mask in one call.
    """
    found: dict[int, MaskResult] = {}
    problems = {place: _given(origin, place, found) for place, origin in enumerate(origins)}
    for spec in methods:
        rest = [place for place in range(len(origins)) if place not in found]
        for place, answer in zip(rest, _maps(spec, [origins[p] for p in rest]), strict=True):
            if isinstance(answer, str):
                problems[place] = _joined(problems[place], answer)
                continue
            mask, stand_in = to_mask(spec, answer)
            if CANVAS_PX % len(mask):
                mask = to_canvas(mask)
            problem = problems[place] and f"{problems[place]}; {spec.name} serves"
            found[place] = MaskResult(mask, stand_in, problem)
    results = []
    for place, origin in enumerate(origins):
        default = MaskResult(
            centre_ellipse(CANVAS_PX), True, f"{problems[place]}; the centre ellipse serves"
        )
        one = found.get(place, default)
        for flip in origin.wanted.flips:
            one = one._replace(mask=flip_cells(one.mask, **flip._asdict()))
        results.append(one)
    return results


def _given(origin: LazyImage, place: int, found: dict[int, MaskResult]) -> str:
    """Take a mask that exists already into ``found``, or return why there is none."""
    wanted = origin.wanted
    if wanted.file is not None:
        try:
            frame = origin.frame()
            mask = read_mask(wanted.file, orientation=frame.orientation, file_size=frame.file_size)
        except UnusableImageError as error:
            return str(error)
        found[place] = MaskResult(mask, False, "")
        return ""
    if wanted.kept is None:
        return wanted.lacking
    kept = wanted.kept
    if not isinstance(wanted.image, Path) or not kept.of.fits(wanted.image):
        return f"{wanted.name} has changed since its mask was made"
    if not kept.bits:
        return kept.problem
    packed = np.frombuffer(kept.bits, np.uint8)
    found[place] = MaskResult(unpack_mask(packed, size=CANVAS_PX), kept.stand_in, kept.problem)
    return ""


def _maps(spec: MethodSpec, origins: Sequence[LazyImage]) -> list[Map | str]:
    """Return each image's map, or what went wrong with it alone."""
    answers: list[Map | str] = []
    images: list[Pixels] = []
    for origin in origins:
        try:
            images.append(origin.pixels())
            answers.append("")
        except UnusableImageError as error:
            answers.append(f"{origin.wanted.name}: {error}")
    made = iter(_tried(spec, images))
    return [answer if isinstance(answer, str) and answer else next(made) for answer in answers]


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


def _joined(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second
