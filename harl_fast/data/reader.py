"""An open container: what decoding reads of it, whether it stays as it was, and single samples."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from harl_fast.data.container.fields import (
    MODE_JPG,
    MODE_RAW,
    MODE_YUV420,
    NOWHERE,
    stored_bytes,
    unpack_mask,
)
from harl_fast.data.container.index import read_index
from harl_fast.data.container.manifest import read_manifest, sample_name
from harl_fast.data.views.jpeg import OK, decode_jpeg
from harl_fast.data.views.sample import Stored, read_bytes
from harl_fast.errors import DataError, explain


@dataclass(frozen=True)
class StoredSample:
    """One sample: image (H, W, 3) uint8 RGB, mask (S, S) bool over the whole image, its label."""

    id: int
    name: str
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    label: int


class OpenContainer:
    """A container or a set of them, checked and open for reading.

    Samples are read with pread, not through a mapping: touching a mapped page behind the end of a
    file that was cut meanwhile would end the process by SIGBUS. CPU time per sample against a
    mapping, median ratios: 1.02 with store jpg, 1.02 to 1.04 with raw, whose 600 kB per picture are
    copied once more (two threads, 800 pictures of 500 x 400, 12 to 30 interleaved rounds, a machine
    that others used too).
    """

    def __init__(self, path: Path, *, sums: bool = False, skip_broken: bool = False) -> None:
        """sums, skip_broken: see `read_index`. Raises DataError."""
        self.path = path
        self.index = read_index(path, read_manifest(path), sums=sums, skip_broken=skip_broken)
        self.manifest = self.index.manifest
        try:
            self._files = [open(each.path, "rb", buffering=0) for each in self.index.files]  # noqa: SIM115  # open as long as it is used
        except OSError as error:
            raise DataError(explain(error)) from error
        weakref.finalize(self, _close, self._files)
        self._opened = [self._facts(number) for number in range(len(self._files))]
        self.labels = self.index.labels
        """(N,) integers."""
        self.stored = Stored(
            files=np.array([each.fileno() for each in self._files], np.int32),
            rows=self.index.rows,
            mask_size=self.index.files[0].mask_size,
            sums=self.index.sums,
        )

    @property
    def data_bytes(self) -> int:
        """Bytes of all stored images and masks."""
        rows, mask_bytes = self.index.rows, self.index.files[0].mask_size ** 2 // 8
        return int(rows["size"].sum(dtype=np.int64)) + len(rows) * mask_bytes

    def _facts(self, number: int) -> tuple[int, int]:
        facts = os.fstat(self._files[number].fileno())
        return facts.st_size, facts.st_mtime_ns

    def check(self, samples: npt.NDArray[np.int64]) -> None:
        """Raise DataError if the file of a sample was cut or written to since it was opened.

        Costs a microsecond per file; asked before and after each batch. A file replaced by renaming
        another one over it is no change: the old one lives on while it is open.
        """
        for number in np.unique(self.stored.rows["file"][samples]).tolist():
            size, written = self._facts(number)
            if size != self._opened[number][0]:
                what = f"has {size:,} bytes, it had {self._opened[number][0]:,} when opened"
            elif written != self._opened[number][1]:
                what = "was written to"
            else:
                continue
            raise DataError(
                f"{self.index.files[number].path} {what}: it changed while in use, so its samples "
                f"cannot be trusted. Never write into a container that is being read; restore it "
                f"and start again, a run with --resume"
            )

    def file_of(self, sample: int) -> tuple[Path, int]:
        """Return the file that a sample lies in, and its number there."""
        number = int(self.stored.rows["file"][sample])
        return self.index.files[number].path, sample - int(self.index.firsts[number])

    def name_of(self, sample: int) -> str:
        """Return a sample's source-relative path. Raises DataError."""
        return sample_name(*self.file_of(sample))

    def image_bytes(self, sample: int) -> npt.NDArray[np.uint8] | None:
        """Return a sample's stored image, or None if it cannot be read."""
        row = self.stored.rows[sample]
        return self._bytes(row["file"], row["image"], int(row["size"]))

    def mask_bytes(self, sample: int) -> npt.NDArray[np.uint8] | None:
        """Return a sample's (S*S/8,) packed mask, or None if it has none that can be read."""
        row, size = self.stored.rows[sample], self.stored.mask_size**2 // 8
        return None if row["mask"] == NOWHERE else self._bytes(row["file"], row["mask"], size)

    def sample(self, index: int) -> StoredSample:
        """Return a sample as it is stored; DataError if it does not decode."""
        row, name = self.stored.rows[index], self.name_of(index)
        height, width = int(row["height"]), int(row["width"])
        data, bits = self.image_bytes(index), self.mask_bytes(index)
        pixels = None if data is None else stored_pixels(int(row["mode"]), data, height, width)
        if pixels is None or bits is None:
            raise DataError(
                f"{self.file_of(index)[0]}: sample {index} ({name}) does not decode. The container "
                f"is damaged: write it again with `make beton`."
            )
        mask, label = unpack_mask(bits, size=self.stored.mask_size), int(self.labels[index])
        return StoredSample(index, name, pixels, mask, label)

    def _bytes(self, file: np.uint16, place: np.uint64, size: int) -> npt.NDArray[np.uint8] | None:
        found = np.empty(size, np.uint8)
        return found if read_bytes(self.stored.files[file], place, found) else None


def read_samples(path: Path, ids: Sequence[int]) -> list[StoredSample]:
    """Return samples of a container or a set; DataError names one that does not decode."""
    container = OpenContainer(path)
    return [container.sample(int(index)) for index in ids]


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


def _close(files: Sequence[BinaryIO]) -> None:
    for each in files:
        each.close()
