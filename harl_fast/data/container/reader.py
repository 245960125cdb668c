"""An open container: what decoding reads of it, whether it stays as it was, and single samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from harl_fast.data.container.fields import (
    MODE_JPG,
    MODE_RAW,
    MODE_YUV420,
    open_reader,
    stored_bytes,
    unpack_mask,
)
from harl_fast.data.container.integrity import IMAGE, LABEL, MASK
from harl_fast.data.container.manifest import check_container, read_manifest, sample_name
from harl_fast.data.views.jpeg import OK, decode_jpeg
from harl_fast.data.views.sample import Stored, read_stored, stored_size
from harl_fast.errors import DataError


class OpenContainer:
    """A container that is open for reading; it must have passed `check_container`.

    Samples are read with pread, not through a mapping: touching a mapped page behind the end of a
    file that was cut meanwhile would end the process by SIGBUS. CPU time per sample against a
    mapping, median ratios: 1.02 with store jpg, 1.02 to 1.04 with raw, whose 600 kB per picture are
    copied once more (two threads, 800 pictures of 500 x 400, 12 to 30 interleaved rounds, a machine
    that others used too).
    """

    def __init__(self, path: Path, *, sums: npt.NDArray[np.uint64] | None = None) -> None:
        """sums: (N, 2) checksums of images and masks that are to be compared."""
        reader = open_reader(path)
        table = np.sort(reader.alloc_table, order="ptr")
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # open as long as it is used
        self._opened = self._facts()
        self.labels = reader.metadata[LABEL].reshape(-1).astype(np.int64)
        """(N,) int64."""
        self.stored = Stored(
            file=np.int32(self._file.fileno()),
            addresses=np.ascontiguousarray(table["ptr"]),
            sizes=np.ascontiguousarray(table["size"]),
            images=np.ascontiguousarray(reader.metadata[IMAGE]),
            masks=np.ascontiguousarray(reader.metadata[MASK]["data_ptr"]),
            mask_size=reader.handlers["mask"].size,
            sums=np.empty((0, 2), np.uint64) if sums is None else sums,
        )

    def _facts(self) -> tuple[int, int]:
        facts = os.fstat(self._file.fileno())
        return facts.st_size, facts.st_mtime_ns

    def check(self) -> None:
        """Raise DataError if the file was cut or written to since it was opened.

        Costs a few microseconds; asked before and after each batch. A file replaced by renaming
        another one over it is no change: the old one lives on while it is open.
        """
        size, written = self._facts()
        if size != self._opened[0]:
            what = f"has {size:,} bytes, it had {self._opened[0]:,} when opened"
        elif written != self._opened[1]:
            what = "was written to"
        else:
            return
        raise DataError(
            f"{self.path} {what}: it changed while in use, so its samples cannot be trusted. Never "
            f"write into a container that is being read; restore it and resume the run"
        )

    def bytes_at(self, address: np.uint64) -> npt.NDArray[np.uint8] | None:
        """Return what is stored at an address of the metadata, or None if it cannot be read."""
        found = np.empty(stored_size(self.stored, address), np.uint8)
        return found if read_stored(self.stored, address, found) else None


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
    container = OpenContainer(path)
    return [_read(container, int(index)) for index in ids]


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


def _read(container: OpenContainer, index: int) -> StoredSample:
    stored, name = container.stored, sample_name(container.path, index)
    image, size = stored.images[index], stored.mask_size
    height, width = int(image["height"]), int(image["width"])
    data, bits = container.bytes_at(image["data_ptr"]), container.bytes_at(stored.masks[index])
    pixels = None if data is None else stored_pixels(int(image["mode"]), data, height, width)
    if pixels is None or bits is None or bits.size * 8 != size * size:
        raise DataError(
            f"{container.path}: sample {index} ({name}) does not decode. The container is damaged: "
            f"write it again with `make beton`."
        )
    mask, label = unpack_mask(bits, size=size), int(container.labels[index])
    return StoredSample(index, name, pixels, mask, label)
