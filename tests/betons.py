"""Small real containers for tests, written through ffcv's writer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import harl_fast.data  # noqa: F401  # it imports ffcv six seconds faster than ffcv alone

# isort: split
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter

from harl_fast.data.container.checksum import stored_sum
from harl_fast.data.container.fields import BitMaskField, StoredMask, open_reader, pack_mask
from harl_fast.data.container.integrity import tables_sha256
from harl_fast.data.container.manifest import (
    FORMAT_VERSION,
    Manifest,
    read_manifest,
    write_manifest,
    write_names,
    write_sums,
)
from harl_fast.files import sha256_file

Item = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], int]


class _Indexed:
    def __init__(self, make: Callable[[int], Item], count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], StoredMask, int]:
        image, mask, label = self.make(index)
        return image, StoredMask(pack_mask(mask), *image.shape[:2]), label


def write_beton(
    path: Path, make: Callable[[int], Item], *, count: int, mask_size: int = 64, quality: int = 90
) -> Path:
    """Write ``count`` samples (image (H, W, 3) uint8, mask (S, S) bool, label) and the manifest."""
    fields = {
        "image": RGBImageField(write_mode="jpg", jpeg_quality=quality),
        "mask": BitMaskField(mask_size),
        "label": IntField(),
    }
    writer = DatasetWriter(str(path), fields, num_workers=1)
    writer.from_indexed_dataset(_Indexed(make, count), chunksize=10)
    return describe_beton(path, [make(index)[2] for index in range(count)], mask_size=mask_size)


def describe_beton(path: Path, labels: Sequence[int], *, mask_size: int = 64) -> Path:
    """Write names and manifest beside a container, without the checksums that older ones lack."""
    classes = max(labels) + 1
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        split=path.stem,
        count=len(labels),
        classes=[f"class{number}" for number in range(classes)],
        class_counts=np.bincount(labels, minlength=classes).tolist(),
        source="test",
        mask={"method": "test", "size": mask_size},
        store={"kind": "jpg"},
        skipped=0,
        beton_bytes=path.stat().st_size,
        beton_sha256=sha256_file(path),
        names_sha256=write_names(path, [f"sample{i}.jpg" for i in range(len(labels))]),
        created="2026-01-01T00:00:00+00:00",
        tool_versions={},
    )
    write_manifest(path, manifest)
    return path


def write_checksums(path: Path) -> Path:
    """Add the checksums of samples and tables to what lies beside a container."""
    reader, data = open_reader(path), path.read_bytes()
    sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"], strict=True))
    columns = [reader.metadata[column]["data_ptr"].tolist() for column in ("f0", "f1")]
    sums = [
        stored_sum(data[start : start + int(sizes[start])])
        for sample in zip(*columns, strict=True)
        for start in sample
    ]
    known = {"tables_sha256": tables_sha256(path), "sums_sha256": write_sums(path, sums)}
    write_manifest(path, dataclasses.replace(read_manifest(path), **known))
    return path


def smooth_noise(index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return a picture with structure at several scales, a function of ``index``."""
    rng = np.random.default_rng(index)
    picture = np.zeros((height, width, 3))
    for step in (4, 16, 64):
        coarse = rng.random((height // step + 2, width // step + 2, 3))
        picture += np.kron(coarse, np.ones((step, step, 1)))[:height, :width]
    return (picture / 3 * 255).astype(np.uint8)


def plain_item(index: int) -> Item:
    """Return a picture of varying size whose mask is its central half, with one of four labels."""
    height, width = 80 + index % 7 * 8, 96 + index % 5 * 8
    mask = np.zeros((64, 64), np.bool_)
    mask[16:48, 16:48] = True
    return smooth_noise(index, height, width), mask, index % 4
