"""Stock FFCV: two PipelineSpecs on one field, each decoding, as its documentation shows them.

Only for a process of its own: FFCV's OSCacheManager changes numba's types process-wide.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

SIZE_PX = 224


class Files:
    """The input files as FFCV's writer takes them: (pixels, label)."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.jpg"))
        self.kinds = sorted({file.parent.name for file in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        file = self.files[index]
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB")), self.kinds.index(file.parent.name)


def _view() -> PipelineSpec:
    crop = RandomResizedCropRGBImageDecoder((SIZE_PX, SIZE_PX), scale=(0.08, 1.0))
    return PipelineSpec("image", decoder=crop, transforms=[RandomHorizontalFlip(), ToTensor()])


def batches(settings: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Yield (samples, batch) for ever; (0, None) opens each epoch."""
    loader = Loader(
        settings["container"],
        batch_size=settings["batch"],
        num_workers=settings["threads"],
        os_cache=True,
        order=OrderOption.RANDOM,
        pipelines={"image": _view(), "again": _view(), "label": None},
        drop_last=True,
        batches_ahead=3,
    )
    while True:
        yield 0, None
        for batch in loader:
            yield len(batch[0]), batch


if __name__ == "__main__":
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(sys.argv[2], fields).from_indexed_dataset(Files(Path(sys.argv[1])))
