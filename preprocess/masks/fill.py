"""Makes the masks that a tree lacks: `make_masks` of a few images, `fill_split` of a split."""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress, UnusualFileError
from harl_fast.pool import ordered_map
from preprocess.images.members import FileRef
from preprocess.images.reading import DEFAULT_READING, Reading, UnusableImageError
from preprocess.masks.controls import to_canvas
from preprocess.masks.maskfile import Fingerprint, MadeMask, Record, find_made, write_made
from preprocess.masks.registry import CHUNK
from preprocess.masks.runner import LazyImage, MaskRequest, find_masks
from preprocess.masks.spec import MethodSpec
from preprocess.masks.tree import MaskTree
from preprocess.sources import Split

KEPT, OWN, MADE, UNREADABLE = "there before", "of your own", "made now", "of unreadable images"
AGAIN, FALLBACK, STAND_IN = "made again", "by fall-back", "centre ellipses"
"""What became of masks: each is one of the first four; the others are kinds of those made now."""


class MaskTask(NamedTuple):
    """A mask that a tree is to have."""

    name: str
    """Of the image."""
    image: FileRef
    file: Path


class Tally(NamedTuple):
    """What became of some masks."""

    counts: Counter[str]
    """By the constants above."""
    problems: list[str]


def make_masks(
    tasks: list[MaskTask],
    methods: tuple[MethodSpec, ...],
    *,
    key: str,
    max_resolution: int,
    reading: Reading = DEFAULT_READING,
) -> Tally:
    """Write the masks of some images that a tree lacks or that do not fit; what a worker does.

    key: of the tree. If one is lacking, those of all the images are found, since a network's
    rounding may depend on the images beside one. Raises `OSError` for a file that is there and
    cannot be read: it may be a user's own.
    """
    counts, problems = Counter[str](), list[str]()
    wanted = {task.file for task in tasks if _is_wanted(task, key, counts, problems)}
    images = list[tuple[MaskTask, Fingerprint, LazyImage]]()
    for task in tasks if wanted else ():
        request = MaskRequest(task.name, task.image)
        image = LazyImage(request, side_px=max_resolution, reading=reading)
        try:
            found_as = Fingerprint.of(task.image)  # before the pixels, lest a change go unnoticed
            image.pixels()
            images.append((task, found_as, image))
        except (UnusableImageError, OSError) as error:
            if task.file in wanted:
                counts[UNREADABLE] += 1
                problems.append(f"{task.name}: the image does not read: {error}")
    results = find_masks([image for *_, image in images], methods)
    for (task, found_as, image), found in zip(images, results, strict=True):
        if task.file not in wanted:
            continue
        frame = image.frame()
        record = Record(
            key=key,
            image=found_as,
            orientation=frame.orientation,
            stand_in=found.stand_in,
            problem=one_line(found.problem),
        )
        write_made(task.file, MadeMask(to_canvas(found.mask), record), frame)
        counts.update({MADE: 1, STAND_IN: found.stand_in, FALLBACK: bool(found.problem)})
        if found.problem:
            problems.append(f"{task.name}: {found.problem}")
    return Tally(counts, problems)


def _is_wanted(task: MaskTask, key: str, counts: Counter[str], problems: list[str]) -> bool:
    """Return whether a mask is to be made, and note what is there instead or was before."""
    try:
        made = find_made(task.file, task.image, key=key)
    except UnusableImageError as error:
        if isinstance(error.__cause__, UnusualFileError):  # such as a pointer of Git LFS
            raise UnusualFileError(errno.EINVAL, str(error), str(task.file)) from error
        if task.file.exists():
            counts[AGAIN] += 1
            problems.append(f"{task.name}: made again: {error}")
        return True
    counts[OWN if made is None else KEPT] += 1
    return False


def fill_split(
    tree: MaskTree,
    name: str,
    split: Split,
    make: Callable[[list[MaskTask]], Tally],
    *,
    shard: tuple[int, int],
    workers: int,
) -> None:
    """Make those masks of one split that belong to a shard and are missing or do not fit.

    make: `make_masks` with its settings. shard: I, N of the I-th of N. Raises `DataError` if none
    of their images could be read.
    """
    count = len(split.names)
    starts = range(CHUNK * (shard[0] - 1), count, CHUNK * shard[1])

    def task(row: int) -> MaskTask:
        image = split.names[row]
        return MaskTask(image, split.file(row), tree.path(image))

    results = ordered_map(
        make,
        ([task(row) for row in range(start, min(start + CHUNK, count))] for start in starts),
        workers=max(1, min(workers, len(starts))),
        describe=lambda chunk: f"{chunk[0].name} to {chunk[-1].name}",
    )
    counts, problems = Counter[str](), list[str]()
    total = sum(min(CHUNK, count - start) for start in starts)
    with contextlib.closing(results), Progress(total, label=f"masks of {name}") as progress:
        for tally in results:
            counts.update(tally.counts)
            problems = problems or tally.problems
            progress.advance(sum(tally.counts[state] for state in (KEPT, OWN, MADE, UNREADABLE)))
    told = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
    others = f"; {count - total:,} belong to other shards" if count > total else ""
    print(f"{name}: {total:,} masks, {told}{others}", flush=True)
    if total and counts[UNREADABLE] == total:
        raise DataError(
            f"none of the {total:,} images of {name} could be read; the first problem: "
            f"{problems[0]}. Get them again, or give other images"
        )
    for problem in problems[:1]:
        print(f"  first problem: {one_line(problem)}")
