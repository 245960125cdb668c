"""A small container for loader tests, loaders on it, and damage done to it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ffcv.reader import Reader

from harl_fast.data.container.fields import BitMaskField
from harl_fast.data.container.manifest import (
    manifest_path,
    names_path,
    read_manifest,
    sums_path,
    write_manifest,
)
from harl_fast.data.loader import BetonLoader
from harl_fast.data.views.crop import ViewGeometry

COUNT = 60
VIEWS = [ViewGeometry(size_px=32, cells=4), ViewGeometry(size_px=48, cells=6)]


def loader(path: Path, **changes) -> BetonLoader:
    values = {"views": VIEWS, "batch_global": 12, "batch_micro": 12, "seed": 3, "workers": 2}
    return BetonLoader(path, **{**values, **changes})


def rows(batch) -> list[tuple[bytes, ...]]:
    """Return the bytes of views, cells and label of each row."""
    parts = [*batch.views, *batch.cells, batch.labels]
    return [tuple(p[row].numpy().tobytes() for p in parts) for row in range(len(batch.ids))]


def by_sample(batches) -> dict[int, tuple[bytes, ...]]:
    """Map each delivered sample id to the bytes of its row."""
    found = {}
    for batch in batches:
        found |= dict(zip(batch.ids.tolist(), rows(batch), strict=True))
    return found


def copied(beton: Path, folder: Path) -> Path:
    """Copy a container with what lies beside it, as far as it is there."""
    for place in (lambda p: p, manifest_path, names_path, sums_path):
        if place(beton).is_file():
            shutil.copy(place(beton), folder)
    return folder / beton.name


def damage(beton: Path, folder: Path, *samples: int, field: str = "f0") -> Path:
    """Copy a container and overwrite part of the image bytes of some samples, sizes kept."""
    path = folder / "train.beton"
    shutil.copy(beton, path)
    shutil.copy(names_path(beton), names_path(path))
    metadata = Reader(str(path), {"mask": BitMaskField}).metadata
    with open(path, "r+b") as stream:
        for sample in samples:
            stream.seek(int(metadata[sample][field]["data_ptr"]) + 200)
            stream.write(b"\xff\xd9" + bytes(400))
    write_manifest(path, dataclasses.replace(read_manifest(beton)))
    return path


def until(met: Callable[[], bool], *, limit_s: float = 600.0) -> None:
    """Wait for something that another thread does; its failure to come is the only time limit."""
    end = time.monotonic() + limit_s
    while not met():
        assert time.monotonic() < end, f"not met within {limit_s} s"
        time.sleep(0.005)
