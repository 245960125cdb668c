"""Makes the masks that a tree lacks: `make_masks` of a few images, `fill_split` of a split."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from harl_fast.errors import one_line
from harl_fast.files import Progress
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


class MaskTask(NamedTuple):
    """A mask that a tree is to have."""

    name: str
    """Of the image."""
    image: FileRef
    file: Path


class Outcome(NamedTuple):
    """What became of a `MaskTask`."""

    name: str
    state: str
    """One of the constants below."""
    stand_in: bool = False
    problem: str = ""
    """Why a fall-back serves, or why there is no mask."""
    again: str = ""
    """Why a mask that was there before did not serve."""


MADE, KEPT, OWN, UNREADABLE = "made", "kept", "own", "unreadable"
"""Made now; there before; a user's own file; none, as the image does not read."""


def make_masks(
    tasks: list[MaskTask],
    methods: tuple[MethodSpec, ...],
    *,
    key: str,
    max_resolution: int,
    reading: Reading = DEFAULT_READING,
) -> list[Outcome]:
    """Write the masks of some images that a tree lacks or that do not fit; what a worker does.

    key: of the tree. If one is lacking, those of all images of a chunk are found, since a
    network's rounding may depend on them.
    """
    outcomes = [_outcome_before(task, key) for task in tasks]
    if all(one.state in (KEPT, OWN) for one in outcomes):
        return outcomes
    images = dict[int, LazyImage]()
    prints = dict[int, Fingerprint]()
    for place, task in enumerate(tasks):
        image = LazyImage(
            MaskRequest(task.name, task.image), side_px=max_resolution, reading=reading
        )
        try:
            prints[place] = Fingerprint.of(task.image)  # before the pixels, lest a change go unseen
            image.pixels()
            images[place] = image
        except (UnusableImageError, OSError) as error:
            if outcomes[place].state == MADE:
                why = f"the image does not read: {error}"
                outcomes[place] = outcomes[place]._replace(state=UNREADABLE, problem=why)
    for (place, image), found in zip(
        images.items(), find_masks([*images.values()], methods), strict=True
    ):
        if outcomes[place].state != MADE:
            continue
        frame = image.frame()
        facts = (frame.orientation, found.stand_in, found.problem)
        made = MadeMask(to_canvas(found.mask), Record(key, prints[place], *facts))
        write_made(tasks[place].file, made, frame)
        outcomes[place] = outcomes[place]._replace(stand_in=found.stand_in, problem=found.problem)
    return outcomes


def _outcome_before(task: MaskTask, key: str) -> Outcome:
    """Return that a mask is kept, or that it is to be made."""
    try:
        made = find_made(task.file, task.image, key=key)
        return Outcome(task.name, OWN if made is None else KEPT)
    except UnusableImageError as error:
        again = str(error) if os.path.lexists(task.file) else ""
        return Outcome(task.name, MADE, again=again)


MakeMasks = Callable[[list[MaskTask]], list[Outcome]]
"""`make_masks` with its settings."""


def fill_split(
    tree: MaskTree,
    name: str,
    split: Split,
    make: MakeMasks,
    *,
    contested: Collection[str],
    shard: tuple[int, int],
    workers: int,
) -> None:
    """Make those masks of one split that belong to a shard and are missing or do not fit.

    contested: see `MaskTree.contested`. shard: I, N of the I-th of N.
    """
    count = len(split.names)
    starts = range(CHUNK * (shard[0] - 1), count, CHUNK * shard[1])

    def tasks(start: int) -> list[MaskTask]:
        rows = range(start, min(start + CHUNK, count))
        return [_task(tree, split.names[row], split.file(row), contested) for row in rows]

    results = ordered_map(
        make,
        map(tasks, starts),
        workers=max(1, min(workers, len(starts))),
        describe=lambda chunk: f"{chunk[0].name} to {chunk[-1].name}",
    )
    total = sum(min(CHUNK, count - start) for start in starts)
    with contextlib.closing(results), Progress(total, label=f"masks of {name}") as progress:
        _summarise(name, _counted(results, progress))
    if count > total:
        print(f"  {count - total:,} images belong to other shards")


def _task(tree: MaskTree, name: str, image: FileRef, contested: Collection[str]) -> MaskTask:
    file = tree.whole_path(name) if name in contested else tree.path(name)
    return MaskTask(name, image, file)


def _counted(results: Iterable[list[Outcome]], progress: Progress) -> Iterator[Outcome]:
    for outcomes in results:
        progress.advance(len(outcomes))
        yield from outcomes


def _summarise(name: str, outcomes: Iterator[Outcome]) -> None:
    start, states, counts = time.monotonic(), Counter[str](), Counter[str]()
    first, again = "", ""
    for one in outcomes:
        states[one.state] += 1
        counts["unreadable images"] += one.state == UNREADABLE
        counts["centre ellipses"] += one.stand_in
        counts["fall-backs"] += one.state == MADE and bool(one.problem)
        counts["not as before"] += bool(one.again)
        first = first or (one.problem and f"{one.name}: {one.problem}")
        again = again or (one.again and f"{one.name}: {one.again}")
    seconds = max(time.monotonic() - start, 1e-9)
    own = f", {states[OWN]:,} of your own" if states[OWN] else ""
    print(f"{name}: {states.total():,} images, {states[KEPT]:,} masks there before{own}")
    if states[MADE] or states[UNREADABLE]:
        told = ", ".join(f"{what} {number:,}" for what, number in counts.items())
        print(f"  {states[MADE]:,} masks made now, {states[MADE] / seconds:,.0f}/s; {told}")
    for what, text in (("problem", first), ("mask not as before", again)):
        if text:
            print(f"  first {what}: {one_line(text)}")
