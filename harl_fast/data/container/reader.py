"""Single samples of a container as they were stored, for pictures and checks, not for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ffcv.reader import Reader
from PIL import Image

from harl_fast.data.container.fields import (
    MODE_JPG,
    MODE_RAW,
    MODE_YUV420,
    open_reader,
    stored_bytes,
    unpack_mask,
)
from harl_fast.data.container.manifest import check_container, read_manifest, sample_name
from harl_fast.data.decode import span
from harl_fast.data.views.jpeg import OK, decode_jpeg
from harl_fast.errors import DataError


@dataclass(frozen=True)
class StoredSample:
    """One sample: image (H, W, 3) uint8 RGB, mask (S, S) bool over the whole image, its label."""

    id: int
    name: str
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    label: int


def read_samples(path: Path, ids: Sequence[int]) -> list[StoredSample]:
    """Return the samples of the given ids; DataError names one that does not decode."""
    check_container(path, read_manifest(path))
    reader = open_reader(path)
    table = np.sort(reader.alloc_table, order="ptr")
    data = np.memmap(path, np.uint8, mode="r")
    storage = (data, table["ptr"].copy(), table["size"].copy(), np.zeros(2, np.uint64))
    return [_read(path, reader, storage, int(index)) for index in ids]


def stored_pixels(
    mode: int, data: npt.NDArray[np.uint8], height: int, width: int
) -> npt.NDArray[np.uint8] | None:
    """Return one stored picture as (H, W, 3) uint8 RGB, or None if it does not decode.

    mode: of `fields`. data: its bytes.
    """
    if mode == MODE_JPG:
        pixels = np.zeros((height, width, 3), np.uint8)
        jpeg = np.ascontiguousarray(data)
        return pixels if decode_jpeg(jpeg, pixels) == OK else None
    if mode not in (MODE_RAW, MODE_YUV420) or data.size != stored_bytes(mode, height, width):
        return None
    if mode == MODE_RAW:
        return np.array(data).reshape(height, width, 3)
    chroma = (-(-height // 2), -(-width // 2))
    luma, *halves = np.split(np.array(data), [height * width, height * width + np.prod(chroma)])
    planes = [
        half.reshape(chroma).repeat(2, axis=0).repeat(2, axis=1)[:height, :width] for half in halves
    ]
    ycc = np.stack([luma.reshape(height, width), *planes], axis=-1)
    return np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB"))


def _read(path: Path, reader: Reader, storage: tuple[np.ndarray, ...], index: int) -> StoredSample:
    row = reader.metadata[index]
    image, mask, label = row["f0"], row["f1"], row["f2"]
    height, width = int(image["height"]), int(image["width"])
    pixels = stored_pixels(int(image["mode"]), span(image["data_ptr"], storage), height, width)
    bits = np.array(span(mask["data_ptr"], storage))
    size = reader.handlers["mask"].size
    if pixels is None or bits.size * 8 != size * size:
        raise DataError(
            f"{path}: sample {index} ({sample_name(path, index)}) does not decode. The container "
            f"is damaged: write it again with `make beton`."
        )
    name = sample_name(path, index)
    return StoredSample(index, name, pixels, unpack_mask(bits, size=size), int(np.ravel(label)[0]))
