"""Small image folders and raw files for the tests of preprocess."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from preprocess.convert import ConversionSettings, Sample, StoredBytes, Task, convert_and_keep
from preprocess.demo.render import Rendered, render
from preprocess.demo.scenes import SCENES
from preprocess.demo.shapes import SHAPES
from preprocess.images.arrays import Pixels
from preprocess.masks.spec import MethodSpec
from preprocess.sources import Rejected


def photo(index: int, *, height: int = 48, width: int = 64) -> Pixels:
    """Return a smooth picture without noise: JPEG keeps it to about two levels."""
    grid = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def demo_image(index: int, *, seed: int, side: int, split: int = 0) -> Rendered:
    """Return an image of a demo set: the kinds in turn, each time before the next scene."""
    kinds, scenes = list(SHAPES), list(SCENES)
    turn, kind = divmod(index, len(kinds))
    scene = scenes[(kind + turn) % len(scenes)]
    return render(seed, index, kind=kinds[kind], scene=scene, split=split, side=side)


def save(pixels: npt.NDArray[np.generic], path: Path, **options: object) -> Path:
    """Write pixels as an image file, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def image_folder(root: Path, *, classes: int = 2, train: int = 4, val: int = 2) -> Path:
    """Write ``root``/{train,val}/class<k>/<i>.jpg with unlike pictures and return ``root``."""
    for split, count in (("train", train), ("val", val)):
        for kind in range(classes):
            for index in range(count):
                picture = photo(1000 * kind + 10 * index + len(split), height=48 + 8 * index)
                save(picture, root / split / f"class{kind}" / f"{index}.jpg", quality=95)
    return root


def contents(out: Path) -> dict[str, object]:
    """Return what lies in a folder of containers: bytes by name, or a manifest without its times.

    Equal for equal conversions. Hidden files count, but not the seals, which cover the times.
    """

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            left_out = ("created", "manifest_sha256")
            return {key: timeless(each) for key, each in value.items() if key not in left_out}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            is_manifest = path.suffix == ".json" and ".report" not in path.name
            name = str(path.relative_to(out))
            found[name] = timeless(json.loads(data)) if is_manifest else data
    return found


def same_colours(pixels: Pixels, expected: Pixels, *, mean: float = 3.0) -> bool:
    """Return whether pictures agree but for JPEG's losses: ``mean`` of 255 levels on average."""
    assert pixels.shape == expected.shape
    return float(np.abs(pixels.astype(int) - expected).mean()) <= mean


def torch_threads(_: int) -> int:
    """Return how many threads torch uses in this process."""
    import torch

    return torch.get_num_threads()


def convert_or_die(
    tasks: list[Task], settings: ConversionSettings, methods: tuple[MethodSpec, ...]
) -> tuple[list[Sample | Rejected], list[StoredBytes]]:
    """Convert, but die as a decoder does that a bad file crashes."""
    if any(task.name.endswith("killer.jpg") for task in tasks):
        os.kill(os.getpid(), signal.SIGSEGV)
    return convert_and_keep(tasks, settings, methods)


def out_of_space(number: int) -> None:
    """Fail as a worker that writes files on a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device", f"/out/{number}")
