"""The fields of containers: pictures in FFCV's image field or our extension of it, and masks.

Each sample says how its picture is stored, so that a container may hold any mixture. With JPEG and
raw pictures alone the field on disk is FFCV's `RGBImageField`, which plain FFCV reads; one that may
hold YCbCr has FFCV's type id for foreign fields, and plain FFCV refuses it instead of misreading.
Masks are square, bit-packed, and in the frame of the stored image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.rgb_image import RGBImageField
from ffcv.pipeline.operation import Operation
from ffcv.reader import Reader

from harl_fast.errors import DataError

MODE_JPG, MODE_RAW, MODE_YUV420 = 0, 1, 2
"""How a picture is stored, in the ``mode`` of its metadata: JPEG bytes; (H, W, 3) uint8 RGB; the
planes Y (H, W), Cb and Cr (ceil(H/2), ceil(W/2)) one after another, uint8, full range (JFIF),
chroma being the mean of 2 x 2 pixels, the last row and column repeated. FFCV knows 0 and 1."""
MODE_NAMES = ("jpg", "raw", "yuv420")

NOWHERE = np.uint64(2**64 - 1)
"""Place of a mask that is missing or has another size than the container's masks."""
PIECE = 1 << 13
"""Samples whose tables are looked at together: they stay in a core's cache."""

_FFCV_OWN, _WITH_YUV420 = 0, 1
"""First argument byte of the field: FFCV writes zeros."""

_MASK_VERSION = 1

Bits = npt.NDArray[np.uint8]

_ARGUMENTS = np.dtype([("version", "<u2"), ("size", "<u2")])


class StoredImageField(RGBImageField):  # type: ignore[misc]  # ffcv is untyped
    """FFCV's image field whose samples may also have the mode `MODE_YUV420`.

    As custom field of FFCV's `Reader` it opens FFCV's own image field, too: see `open_reader`.
    """

    @staticmethod
    def from_binary(binary: npt.NDArray[np.uint8]) -> StoredImageField:
        """Return the field of a container's 1024 argument bytes; `DataError` if they are newer."""
        version = int(np.ascontiguousarray(binary).view(np.uint8)[0])
        if version not in (_FFCV_OWN, _WITH_YUV420):
            raise DataError(
                f"the container's images have format {version}, this program reads up to "
                f"{_WITH_YUV420}; write the container again with `make beton`"
            )
        return StoredImageField()

    def to_binary(self) -> np.void:
        """Return the argument record; FFCV stores its element 0, as for its own fields."""
        record: np.void = np.zeros(1, dtype=ARG_TYPE)[0]
        record[0][0] = _WITH_YUV420
        return record

    def get_decoder_class(self) -> type[Operation]:
        """Return FFCV's base class: its own image decoders would take YCbCr for RGB."""
        return Operation  # type: ignore[no-any-return]


def stored_bytes(mode: int, height: int, width: int) -> int:
    """Return how many bytes an uncompressed picture takes; mode: `MODE_RAW` or `MODE_YUV420`."""
    if mode == MODE_RAW:
        return 3 * height * width
    if mode == MODE_YUV420:
        return height * width + 2 * -(-height // 2) * -(-width // 2)
    raise ValueError(f"mode {mode} has no fixed size")


@dataclass(frozen=True)
class StoredMask:
    """One sample's mask as the writer hands it over."""

    packed: Bits
    """(S*S/8,) uint8, see `pack_mask`."""
    height: int
    """Height of the stored image in pixels."""
    width: int
    """Width of the stored image in pixels."""


class BitMaskField(Field):  # type: ignore[misc]  # ffcv is untyped
    """A mask of ``size`` x ``size`` pixels that spans the whole stored image.

    On disk: the metadata below, pointing at size*size/8 bytes in the order of `pack_mask`.
    """

    def __init__(self, size: int = 64) -> None:
        if size <= 0 or size % 8 or size > 1024:
            raise DataError(f"mask size {size}: give a multiple of 8 from 8 to 1024")
        self.size = size

    @property
    def metadata_type(self) -> np.dtype[Any]:
        return np.dtype([("height", "<u2"), ("width", "<u2"), ("data_ptr", "<u8")])

    @staticmethod
    def from_binary(binary: npt.NDArray[np.uint8]) -> BitMaskField:
        """Return the field that a container's 1024 argument bytes describe."""
        arguments = np.ascontiguousarray(binary).view(np.uint8)[: _ARGUMENTS.itemsize]
        version, size = arguments.view(_ARGUMENTS)[0].item()
        if version != _MASK_VERSION:
            raise DataError(
                f"the container's masks have format {version}, this program reads "
                f"{_MASK_VERSION}; write the container again with `make beton`"
            )
        return BitMaskField(size)

    def to_binary(self) -> np.void:
        """Return the argument record; FFCV stores its element 0, as for its own fields."""
        arguments = np.array([(_MASK_VERSION, self.size)], dtype=_ARGUMENTS).view(np.uint8)
        record: np.void = np.zeros(1, dtype=ARG_TYPE)[0]
        record[0][: arguments.size] = arguments
        return record

    def encode(
        self,
        destination: npt.NDArray[np.void],
        value: StoredMask,
        malloc: Callable[[int], tuple[int, Bits]],
    ) -> None:
        """Write one mask into the container; ``destination`` is its one-element metadata."""
        count = self.size * self.size // 8
        if value.packed.shape != (count,) or value.packed.dtype != np.uint8:
            raise DataError(
                f"a mask of {value.packed.shape} {value.packed.dtype} does not fit a field of "
                f"size {self.size}: expected ({count},) uint8 from `pack_mask`"
            )
        destination["height"], destination["width"] = value.height, value.width
        destination["data_ptr"], storage = malloc(count)
        storage[:] = value.packed

    def get_decoder_class(self) -> type[Operation]:
        """Return FFCV's base class: any explicit decoder is accepted, and none is implied."""
        return Operation  # type: ignore[no-any-return]


def open_reader(path: Path) -> Reader:
    """Return FFCV's reader of a container of ours, whatever its store."""
    fields: dict[str, Any] = {"image": StoredImageField, "mask": BitMaskField}
    return Reader(str(path), fields)


def pack_mask(mask: npt.NDArray[np.bool_]) -> Bits:
    """Return a mask as bits, row by row; bit 7 of byte 0 is pixel (0, 0).

    mask: (S, S) bool, S a multiple of 8. Returns (S*S/8,) uint8.
    """
    return np.packbits(mask)


def unpack_mask(packed: Bits, *, size: int) -> npt.NDArray[np.bool_]:
    """Return the (size, size) bool mask that `pack_mask` made from (size*size/8,) uint8."""
    return np.unpackbits(packed, count=size * size).reshape(size, size).astype(np.bool_)


def resize_mask(mask: npt.NDArray[Any], *, size: int) -> npt.NDArray[np.bool_]:
    """Return where at least half of each target pixel's area is foreground.

    mask: (H, W) bool; or integer, where non-zero is foreground; or float coverage in [0, 1].
    Returns (size, size) bool. Exact for bool and integer masks, ties included; float64 otherwise.
    """
    height, width = mask.shape
    whole = mask.dtype.kind in "bui"
    flat = np.ascontiguousarray(mask != 0 if whole else mask)
    values = flat.view(np.uint8) if whole else flat.astype(np.float64)
    # Sums over the pixels above and left of each corner, and at the cells' corners in between:
    # these lie at multiples of 1/size, so size * size times a sum is a whole number of pixels.
    sums = cv2.integral(values, sdepth=cv2.CV_32S if whole else cv2.CV_64F)
    (top, below), (left, right) = _corners(height, size=size), _corners(width, size=size)
    rows = (size - below)[:, None] * sums[top] + below[:, None] * sums[np.minimum(top + 1, height)]
    corners = (size - right) * rows[:, left] + right * rows[:, np.minimum(left + 1, width)]
    return np.ascontiguousarray(2 * np.diff(np.diff(corners, axis=0)) >= height * width)


def _corners(pixels: int, *, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where ``size`` equal parts of a side begin and end: pixel, and 1/size pixels more."""
    pixel, part = np.divmod(np.arange(size + 1) * pixels, size)
    return pixel, part
