"""Single samples of a container as they were stored, for pictures and checks, not for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ffcv.reader import Reader

from harl_fast.data.decode import decode_jpeg, span
from harl_fast.data.imagefield import open_reader
from harl_fast.data.manifest import check_container, read_manifest, sample_name
from harl_fast.data.maskfield import unpack_mask
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


def _read(path: Path, reader: Reader, storage: tuple[np.ndarray, ...], index: int) -> StoredSample:
    row = reader.metadata[index]
    image, mask, label = row["f0"], row["f1"], row["f2"]
    height, width = int(image["height"]), int(image["width"])
    pixels = np.zeros((height, width, 3), np.uint8)
    jpeg = np.ascontiguousarray(span(image["data_ptr"], storage))
    bits = np.array(span(mask["data_ptr"], storage))
    size = reader.handlers["mask"].size
    code = decode_jpeg(jpeg, height, width, pixels.reshape(-1)) if jpeg.size else -1
    if code != 0 or bits.size * 8 != size * size:
        raise DataError(
            f"{path}: sample {index} ({sample_name(path, index)}) does not decode. The container "
            f"is damaged: write it again with `make beton`."
        )
    name = sample_name(path, index)
    return StoredSample(index, name, pixels, unpack_mask(bits, size=size), int(np.ravel(label)[0]))
