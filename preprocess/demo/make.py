"""Writes the demo set as an ordinary image folder with a mask tree beside it."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
from PIL import Image

from harl_fast.demoset import RECIPE, SPLITS, name_of, set_name
from harl_fast.errors import DataError
from harl_fast.files import Progress, write_json
from harl_fast.pool import ordered_map
from harl_fast.textfile import read_json
from preprocess.demo.render import render
from preprocess.demo.scenes import SCENES
from preprocess.demo.shapes import SHAPES

HELD_OUT = 4
"""One image in this many belongs to the held-out split."""
CHUNK = 16
MARKER = "demo.json"
"""Written last: a folder that has it is a whole demo set."""


@dataclass(frozen=True)
class DemoSettings:
    """Which demo set to make."""

    images: int
    """Images in both splits together."""
    side: int
    """Side of the square images in pixels."""
    seed: int

    @property
    def name(self) -> str:
        """What manifests call the source."""
        return set_name(self.images, self.side, seed=self.seed)


@dataclass(frozen=True)
class Planned:
    """One image of a set, before it is drawn."""

    split: int
    """0 training, 1 held out."""
    index: int
    kind: str
    scene: str


def _made_by(marker: Path) -> dict[str, Any]:
    try:
        return read_json(marker, error=DataError)
    except DataError as error:
        raise DataError(f"{error}. Delete {marker.parent}, and it is made anew") from error


def make_demo_set(folder: Path, settings: DemoSettings, *, workers: int) -> None:
    """Write ``folder``/{train,val}/<class>/*.jpg and ``folder``/masks/{train,val}/<class>/*.png.

    A folder that holds this very set is left alone. Raises `DataError` rather than replace a
    folder that holds anything else.
    """
    content = {"recipe": RECIPE, **asdict(settings)}
    marker = folder / MARKER
    if marker.is_file() and _made_by(marker) == content:
        return
    if folder.exists() and not marker.is_file():
        raise DataError(
            f"{folder} is in the way: it is no demo set of this program. Choose another --out, "
            f"or give it as --data"
        )
    folder = folder.resolve()  # a link stays
    fresh, before = (folder.with_name(f".{folder.name}.{name}") for name in ("tmp", "before"))
    for left in (fresh, before):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        _write(fresh, settings, workers=workers)
        write_json(fresh / MARKER, content)
        if folder.exists():
            folder.rename(before)
        fresh.rename(folder)
    finally:
        for left in (fresh, before):
            shutil.rmtree(left, ignore_errors=True)


def plan(settings: DemoSettings) -> Iterator[Planned]:
    """Yield every image, split by split.

    Each hundred of a split has each pair of kind and scene once, each ten each kind and each scene.
    """
    kinds, scenes = list(SHAPES), list(SCENES)
    held_out = max(settings.images // HELD_OUT, len(kinds))
    for split, count in enumerate((settings.images - held_out, held_out)):
        for index in range(count):
            turn, kind = divmod(index, len(kinds))
            yield Planned(split, index, kinds[kind], scenes[(kind + turn) % len(scenes)])


def _write(folder: Path, settings: DemoSettings, *, workers: int) -> None:
    images = list(plan(settings))
    for split, kind in {(SPLITS[each.split], each.kind) for each in images}:
        (folder / split / kind).mkdir(parents=True)
        (folder / "masks" / split / kind).mkdir(parents=True)
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    work = functools.partial(write_images, folder=folder, seed=settings.seed, side=settings.side)
    results = ordered_map(
        work,
        chunks,
        workers=min(workers, len(chunks)),
        describe=lambda chunk: f"image {chunk[0].index}",
    )
    with contextlib.closing(results), Progress(len(images), label="drawing demo set") as progress:
        for written in results:
            progress.advance(written)


def write_images(images: list[Planned], *, folder: Path, seed: int, side: int) -> int:
    """Draw and write some images of the `plan` with their masks; return how many."""
    cv2.setNumThreads(1)
    for each in images:
        drawn = render(
            seed, each.index, kind=each.kind, scene=each.scene, split=each.split, side=side
        )
        name = f"{SPLITS[each.split]}/{name_of(each.kind, each.scene, each.index)}"
        Image.fromarray(drawn.image).save(folder / f"{name}.jpg", quality=92)
        Image.fromarray(drawn.mask).convert("L").save(folder / "masks" / f"{name}.png")
    return len(images)
