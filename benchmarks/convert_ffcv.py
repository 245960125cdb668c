"""FFCV's own `DatasetWriter` over the same files, with masks as its documentation stores arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import BytesField, IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.inputs import MASK_PX, QUALITY
from benchmarks.peer_ffcv import Files


class _FilesAndMasks(Files):
    """The same with each image's mask, bit-packed."""

    def __init__(self, folder: Path, masks: Path) -> None:
        super().__init__(folder)
        self.masks = masks

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        file = self.files[index]
        with Image.open(self.masks / file.parent.name / f"{file.stem}.png") as image:
            mask = np.asarray(image.resize((MASK_PX, MASK_PX), Image.Resampling.BOX)) > 127
        pixels, label = super().__getitem__(index)
        return pixels, label, np.packbits(mask)


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, None]]:
    """Yield (images, None) after each conversion of the same images, for ever."""
    folder, out = Path(settings["images"]), Path(settings["out"])
    image = RGBImageField("jpg", max_resolution=settings["side"], jpeg_quality=QUALITY)
    fields = {"image": image, "label": IntField()}
    dataset = Files(folder)
    if settings["masks"]:
        fields["mask"] = BytesField()
        dataset = _FilesAndMasks(folder, Path(settings["masks"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    while True:
        writer = DatasetWriter(str(out), fields, num_workers=settings["workers"])
        writer.from_indexed_dataset(dataset)
        yield len(dataset), None
