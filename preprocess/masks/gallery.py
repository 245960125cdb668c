"""Pictures of masks, worst and best first, from a folder of images or from a container.

A tile row a picture: the image with the outline of its mask, the soft map, the mask as a cut-out,
and, where the truth is given, what was hit, added and missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt

from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.container.reader import read_samples
from harl_fast.data.order import spread
from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress
from preprocess.images import SUFFIXES, UnusableImageError, decode_image, open_image, shrink
from preprocess.listing import list_images
from preprocess.masks.find import CHUNK
from preprocess.masks.score import colour_separation, coverage, iou, soft_jaccard, stretch
from preprocess.reading import DEFAULT_READING, Reading

TILE_PX = 192
_GAP_PX, _HEAD_PX = 6, 26
_OUTLINE, _TRUE_OUTLINE = (255, 220, 0), (0, 220, 255)
_HIT, _ADDED, _MISSED = (235, 235, 235), (230, 60, 40), (40, 110, 240)
_INK, _PAPER, _FRAME = (230, 230, 230), 24, 40
_OUTSIDE = (120, 40, 140)
"""Behind cut-outs: a colour that few objects have, neither dark nor bright."""
LONGEST_PX = 512
"""Images are shrunk to this longest side, as `make beton` stores them by default."""

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]
Find = Callable[[Sequence[Pixels]], list[tuple[Mask, Map]]]
"""Images (H, W, 3) uint8 to their masks (S, S) bool and soft maps (S', S') in [0, 1]."""


@dataclass(frozen=True)
class Shown:
    """One picture with its tiles and the figure that places it."""

    name: str
    figure: float
    """IoU with the truth, or else `colour_separation`: the larger the better."""
    has_truth: bool
    tiles: tuple[Pixels, ...]
    """(T, T, 3) uint8 each."""


def shown(
    name: str, image: Pixels, mask: Mask, soft: Map | None = None, truth: Mask | None = None
) -> Shown:
    """Return one picture's tiles and figure.

    image: (H, W, 3) uint8. mask, soft, truth: over the whole image, of any size each.
    """
    share = f"covers {mask.mean():.0%}"
    if truth is None:
        figure = colour_separation(image, mask)
        text = f"separation {figure:.2f}, {share}"
    else:
        figure = iou(stretch(mask, *truth.shape), truth)
        cells = soft_jaccard(coverage(mask), coverage(truth))
        text = f"IoU {figure:.2f}, cells {cells:.2f}, {share}"
    small = _fitted(image)
    inside = stretch(mask, *small.shape[:2])
    outlined = small.copy()
    if truth is not None:
        _outline(outlined, stretch(truth, *small.shape[:2]), _TRUE_OUTLINE)
    _outline(outlined, inside, _OUTLINE)
    tiles = [_labelled(_tile(outlined), name, text)]
    if soft is not None:
        tiles.append(_tile(_grey(soft, *small.shape[:2])))
    tiles.append(_tile(np.where(inside[..., None], small, np.uint8(_OUTSIDE))))
    if truth is not None:
        tiles.append(_tile(_compared(inside, stretch(truth, *small.shape[:2]))))
    return Shown(name, figure, truth is not None, tuple(tiles))


def ranked(pictures: Sequence[Shown]) -> list[Shown]:
    """Return pictures worst first; the name decides between equals."""
    return sorted(pictures, key=lambda one: (one.figure, one.name))


def sheet(pictures: Sequence[Shown], *, count: int) -> Pixels:
    """Return a sheet of up to ``count`` pictures: the worst on the left, the best on the right.

    Both sides begin with the most extreme. Pictures with truth come before those without, so
    that one sheet has figures of one kind: those without are then left out. Raises `DataError`
    when there are none.
    """
    told = [one for one in pictures if one.has_truth] or list(pictures)
    if not told:
        raise DataError("no picture could be shown")
    order = ranked(told)
    rows = min(-(-count // 2), -(-len(order) // 2))
    figure = "IoU with the truth" if told[0].has_truth else "colour separation (no truth given)"
    sides = []
    chosen = (order[:rows], order[::-1][: min(rows, count - rows, len(order) - rows)])
    width = max(len(one.tiles) for one in told) * (TILE_PX + _GAP_PX)
    for title, side in zip(("worst", "best"), chosen, strict=True):
        if side:
            head = np.full((_HEAD_PX, width, 3), _PAPER, np.uint8)
            _write(head, f"{title} of {len(order)} by {figure}", 6, 18)
            sides.append(np.concatenate([head, *(_row(one, width) for one in side)], axis=0))
    tallest = max(len(side) for side in sides)
    blank = [((0, tallest - len(side)), (0, 0), (0, 0)) for side in sides]
    filled = [np.pad(s, pad, constant_values=_FRAME) for s, pad in zip(sides, blank, strict=True)]
    return np.concatenate(filled, axis=1)


def from_folder(
    folder: Path,
    find: Find,
    *,
    truth: Path | None,
    most: int,
    reading: Reading = DEFAULT_READING,
) -> tuple[list[Shown], dict[str, str]]:
    """Return up to ``most`` images below a folder, evenly spaced by name, and what failed and why.

    truth: masks under the images' relative names with any image suffix; images without one are
    shown without. Raises `DataError` when the folder holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a .beton file nor a folder of images")
    files = [folder / name for name in list_images(folder).images]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    chosen = [files[place] for place in spread(len(files), most)]
    found: list[Shown] = []
    failed: dict[str, str] = {}
    with Progress(len(chosen), label="finding masks") as progress:
        for start in range(0, len(chosen), CHUNK):
            images: dict[str, Pixels] = {}
            for path in chosen[start : start + CHUNK]:
                name = one_line(str(path.relative_to(folder)))
                try:
                    decoded = decode_image(path, side_px=LONGEST_PX, reading=reading)
                    images[name] = shrink(decoded.rgb, side_px=LONGEST_PX)
                except UnusableImageError as error:
                    failed[name] = str(error)
            masks = find(list(images.values())) if images else []
            for (name, image), (mask, soft) in zip(images.items(), masks, strict=True):
                found.append(shown(name, image, mask, soft, _truth(truth, name)))
            progress.advance(len(chosen[start : start + CHUNK]))
    return found, failed


def from_container(beton: Path, *, truth: Path | None, most: int) -> Iterator[Shown]:
    """Yield up to ``most`` stored samples, evenly spaced, with their stored masks.

    truth: as for `from_folder`; a sample's name is ``<split>/<class>/<stem>.jpg``. Raises
    `DataError` when the container or a sample is damaged.
    """
    ids = spread(read_manifest(beton).count, most).tolist()
    for start in range(0, len(ids), CHUNK):
        for sample in read_samples(beton, ids[start : start + CHUNK]):
            name = sample.name or str(sample.id)
            yield shown(name, sample.image, sample.mask, None, _truth(truth, name))


def _truth(folder: Path | None, name: str) -> Mask | None:
    """Return the true mask under a name, if the folder has one.

    Above 127 is foreground, as JPEG masks need it; in files without such values, non-zero is.
    """
    if folder is None:
        return None
    stem = folder / PurePosixPath(name).with_suffix("")
    for path in (stem.with_name(stem.name + suffix) for suffix in sorted(SUFFIXES)):
        if path.is_file():
            try:
                with open_image(path) as image:
                    values = np.asarray(image.convert("L") if image.mode != "P" else image)
            except UnusableImageError as error:
                raise DataError(f"the true mask {path} cannot be read: {error}") from error
            return np.asarray(values > (127 if values.max() > 127 else 0), np.bool_)
    return None


def _fitted(picture: Pixels) -> Pixels:
    """Return a picture whose longer side is a tile's."""
    scale = TILE_PX / max(picture.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def _tile(picture: Pixels) -> Pixels:
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    tile[: picture.shape[0], : picture.shape[1]] = picture
    return tile


def _grey(soft: Map, height: int, width: int) -> Pixels:
    levels = (np.clip(soft, 0, 1) * 255 + 0.5).astype(np.uint8)
    grey = cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.repeat(grey[..., None], 3, axis=2)


def _compared(mask: Mask, truth: Mask) -> Pixels:
    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[mask & truth], picture[mask & ~truth], picture[truth & ~mask] = _HIT, _ADDED, _MISSED
    return picture


def _outline(picture: Pixels, mask: Mask, colour: tuple[int, int, int]) -> None:
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(picture, found, -1, colour, 1)


def _row(one: Shown, width: int) -> Pixels:
    frame = ((0, _GAP_PX), (0, _GAP_PX), (0, 0))
    tiles = [np.pad(tile, frame, constant_values=_FRAME) for tile in one.tiles]
    row = np.concatenate(tiles, axis=1)
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_FRAME)


def _labelled(tile: Pixels, name: str, text: str) -> Pixels:
    for line, y in ((name[-28:], 12), (text, TILE_PX - 6)):
        tile[y - 11 : y + 5] //= 3  # a dark strip: the text is read on any picture
        _write(tile, line, 3, y, scale=0.36)
    return tile


def _write(picture: Pixels, text: str, x: int, y: int, *, scale: float = 0.45) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, text, (x, y), font, scale, _INK, 1, cv2.LINE_AA)
