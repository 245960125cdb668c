"""Pictures of masks, from the worst to the best, of a folder of images or of a container.

One row per picture: the image with the outline of its mask, the soft map, the mask as a cut-out,
and, where the truth is given, what was hit, added and missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harl_fast import drawing
from harl_fast.data.order import spread
from harl_fast.data.reader import OpenContainer
from harl_fast.drawing import OUTLINE, Colour, Row, fitted, outline, resized, tile
from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress
from preprocess.images.arrays import Map, Mask, Pixels
from preprocess.images.decode import Frame, decode_image, in_frame, load_mask, shrink
from preprocess.images.listing import SUFFIXES, list_images
from preprocess.images.reading import DEFAULT_READING, STORED_PX, Reading, UnusableImageError
from preprocess.images.settle import settle
from preprocess.masks.registry import CHUNK
from preprocess.masks.selftrained.score import (
    colour_separation,
    coverage,
    iou,
    soft_jaccard,
    stretch,
)
from preprocess.masks.tree import mask_stem

_TRUE_OUTLINE = (0, 220, 255)
_HIT, _ADDED = (235, 235, 235), (230, 60, 40)
_MISSED, _NEITHER = (40, 110, 240), (0, 0, 0)
_OUTSIDE = (120, 40, 140)
"""Behind cut-outs: a colour that few objects have, neither dark nor bright."""

Find = Callable[[Sequence[Pixels]], Sequence[tuple[Mask, Map] | str]]
"""Images (H, W, 3) uint8 to their masks (S, S) bool and soft maps (S', S') in [0, 1]."""


@dataclass(frozen=True)
class Shown:
    """One picture with its tiles and the figure that places it."""

    name: str
    figure: float
    """IoU with the truth, or else `colour_separation`: the larger the better."""
    has_truth: bool
    text: str
    """The figures in words."""
    tiles: dict[str, Pixels]
    """Square tiles by what they show, see `drawing.sheet`."""


def shown(
    name: str, image: Pixels, mask: Mask, soft: Map | None = None, truth: Mask | None = None
) -> Shown:
    """Return one picture's tiles and figure.

    image: (H, W, 3) uint8. mask, soft, truth: over the whole image, of any size each.
    """
    share = f"covers {mask.mean():.0%}"
    small = fitted(image)
    inside, outlined = stretch(mask, *small.shape[:2]), small.copy()
    tiles = {"image with outlines": outlined}
    if soft is not None:
        levels = (np.clip(soft, 0, 1) * 255 + 0.5).astype(np.uint8)
        grey = resized(levels, *small.shape[:2])
        tiles["soft map: black 0, white 1"] = np.repeat(grey[..., None], 3, axis=2)
    tiles["inside of the mask"] = np.where(inside[..., None], small, np.array(_OUTSIDE, np.uint8))
    if truth is None:
        figure = colour_separation(image, mask)
        text = f"separation {figure:.2f}, {share}"
    else:
        figure = iou(stretch(mask, *truth.shape), truth)
        cells = soft_jaccard(coverage(mask), coverage(truth))
        text = f"IoU {figure:.2f}, cells {cells:.2f}, {share}"
        true = stretch(truth, *small.shape[:2])
        outline(outlined, true, _TRUE_OUTLINE)
        compared = tiles["mask against truth"] = np.full_like(small, _NEITHER)
        compared[inside & true], compared[inside & ~true] = _HIT, _ADDED
        compared[true & ~inside] = _MISSED
    outline(outlined, inside, OUTLINE)
    squares = {head: tile(picture) for head, picture in tiles.items()}
    return Shown(name, figure, truth is not None, text, squares)


def selected(pictures: Sequence[Shown], *, count: int) -> dict[str, list[Shown]]:
    """Return up to ``count`` pictures as worst (worst first), typical and best (best first).

    Typical ones lie in the middle of the order by figure; the name decides between equals.
    """
    order = sorted(pictures, key=lambda one: (one.figure, one.name))
    count = min(count, len(order))
    worst = -(-count // 3)
    best = -(-(count - worst) // 2)
    typical = count - worst - best
    start = max(worst, (len(order) - typical) // 2)
    groups = {
        "worst": order[:worst],
        "typical": order[start : start + typical],
        "best": order[::-1][:best],
    }
    return {name: group for name, group in groups.items() if group}


def sheet(pictures: Sequence[Shown], *, count: int, title: str = "Masks") -> Pixels:
    """Return a sheet of up to ``count`` pictures: the worst, typical ones and the best.

    Pictures with truth come before those without, so that one sheet has figures of one kind: those
    without are then left out. Raises `DataError` when there are none.
    """
    told = [one for one in pictures if one.has_truth] or list(pictures)
    if not told:
        raise DataError("no picture could be shown")
    truth = told[0].has_truth
    figure = "IoU with the truth" if truth else "colour separation (no truth given)"
    rows: list[Row] = []
    for name, group in selected(told, count=count).items():
        rows.append((f"{name}, of {len(told)} by {figure}", {}))
        rows += [(f"{one.text}   {one.name}", one.tiles) for one in group]
    legend: list[tuple[Colour | Pixels, str]] = [(OUTLINE, "outline of the mask")]
    legend += [(_TRUE_OUTLINE, "outline of the truth")] if truth else []
    legend += [(_OUTSIDE, "outside of the mask")]
    if truth:
        legend += [(_HIT, "right"), (_ADDED, "too much"), (_MISSED, "missing")]
        legend += [(_NEITHER, "in neither")]
    return drawing.sheet(rows, title=title, legend=[*legend, drawing.NO_IMAGE])


def from_folder(
    folder: Path,
    find: Find,
    *,
    truth: Path | None,
    most: int,
    reading: Reading = DEFAULT_READING,
) -> tuple[list[Shown], dict[str, str]]:
    """Return up to ``most`` images below a folder, evenly spaced by name, and what failed and why.

    truth: masks under the images' relative names with any image suffix, instead of theirs or behind
    it, which lie as the file or upright; images without one are shown without. Raises `DataError`
    when the folder holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a .beton file nor a folder of images")
    files = [folder / name for name in list_images(folder).images]
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    chosen = [files[place] for place in spread(len(files), most)]
    reading = settle(reading, len(files), files.__getitem__)
    found: list[Shown] = []
    failed: dict[str, str] = {}
    with Progress(len(chosen), label="finding masks") as progress:
        for start in range(0, len(chosen), CHUNK):
            images: dict[str, tuple[Pixels, Mask | None]] = {}
            for path in chosen[start : start + CHUNK]:
                name = one_line(str(path.relative_to(folder)))
                try:
                    decoded = decode_image(path, side_px=STORED_PX, reading=reading)
                    rgb = shrink(decoded.rgb, side_px=STORED_PX)
                except UnusableImageError as error:
                    failed[name] = str(error)
                    continue
                own = _truth(truth, str(path.relative_to(folder)), decoded.frame)
                images[name] = rgb, own
            masks = find([rgb for rgb, _ in images.values()]) if images else []
            for (name, (rgb, own)), answer in zip(images.items(), masks, strict=True):
                if isinstance(answer, str):
                    failed[name] = answer
                else:
                    found.append(shown(name, rgb, *answer, own))
            progress.advance(len(chosen[start : start + CHUNK]))
    return found, failed


def from_container(beton: Path, *, truth: Path | None, most: int) -> Iterator[Shown]:
    """Yield up to ``most`` stored samples, evenly spaced, with their stored masks.

    truth: as for `from_folder`, all upright; a sample's name is ``<split>/<class>/<stem>.jpg``.
    Raises `DataError` when the container or a sample is damaged.
    """
    container = OpenContainer(beton)
    for index in spread(container.manifest.count, most).tolist():
        sample = container.sample(index)
        name = sample.name or str(sample.id)
        upright = Frame(1, sample.image.shape[1::-1])
        yield shown(name, sample.image, sample.mask, None, _truth(truth, name, upright))


def _truth(folder: Path | None, name: str, frame: Frame) -> Mask | None:
    """Return the upright true mask of an image of that name, if the folder has one.

    Above 127 is foreground, as JPEG masks need it; in files without such values, non-zero is.
    """
    if folder is None:
        return None
    stems = (name, mask_stem(name))
    for path in (folder / f"{stem}{suffix}" for stem in stems for suffix in sorted(SUFFIXES)):
        if path.is_file():
            try:
                image = load_mask(path, lossy=True)
                values = np.asarray(image if image.mode == "P" else image.convert("L"))
                return in_frame(values > (127 if values.max() > 127 else 0), frame)
            except UnusableImageError as error:
                raise DataError(
                    f"the true mask {path} cannot be used: {error}. Save it as its image is shown"
                ) from error
    return None
