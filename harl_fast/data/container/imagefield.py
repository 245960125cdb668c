"""The image field of containers: FFCV's own, and its extension by planar YCbCr pictures.

Each sample says how its picture is stored, so that a container may hold any mixture. With JPEG and
raw pictures alone the field on disk is FFCV's `RGBImageField`, which plain FFCV reads; one that may
hold YCbCr has FFCV's type id for foreign fields, and plain FFCV refuses it instead of misreading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ffcv.fields.base import ARG_TYPE
from ffcv.fields.rgb_image import RGBImageField
from ffcv.pipeline.operation import Operation
from ffcv.reader import Reader

from harl_fast.data.container.maskfield import BitMaskField
from harl_fast.errors import DataError

MODE_JPG, MODE_RAW, MODE_YUV420 = 0, 1, 2
"""How a picture is stored, in the ``mode`` of its metadata: JPEG bytes; (H, W, 3) uint8 RGB; the
planes Y (H, W), Cb and Cr (ceil(H/2), ceil(W/2)) one after another, uint8, full range (JFIF),
chroma being the mean of 2 x 2 pixels, the last row and column repeated. FFCV knows 0 and 1."""
MODE_NAMES = ("jpg", "raw", "yuv420")

_FFCV_OWN, _WITH_YUV420 = 0, 1
"""First argument byte of the field: FFCV writes zeros."""


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


def open_reader(path: Path) -> Reader:
    """Return FFCV's reader of a container of ours, whatever its store."""
    fields: dict[str, Any] = {"image": StoredImageField, "mask": BitMaskField}
    return Reader(str(path), fields)


def stored_bytes(mode: int, height: int, width: int) -> int:
    """Return how many bytes an uncompressed picture takes; mode: `MODE_RAW` or `MODE_YUV420`."""
    if mode == MODE_RAW:
        return 3 * height * width
    if mode == MODE_YUV420:
        return height * width + 2 * -(-height // 2) * -(-width // 2)
    raise ValueError(f"mode {mode} has no fixed size")
