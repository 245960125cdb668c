"""A container's header, metadata and allocation table: their checksum, and what cannot be true.

FFCV reads these parts whole at start and believes them: a wild sample count makes it hang, a wild
address makes it read elsewhere. They are some 100 bytes per sample, so all of them are checked
whenever a container is opened; the samples' own bytes are checked when they are decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type

from harl_fast.data.container.fields import MODE_JPG, MODE_NAMES, BitMaskField, stored_bytes
from harl_fast.data.container.manifest import UNLABELLED

FIELD_COUNT = 3
METADATA_START = HeaderType.itemsize + FIELD_COUNT * FieldDescType.itemsize
METADATA_TYPE: np.dtype[Any] = get_metadata_type([RGBImageField(), BitMaskField(), IntField()])
"""One row per sample. Independent of the fields' arguments."""
IMAGE, MASK, LABEL = "f0", "f1", "f2"
"""FFCV numbers the metadata's columns."""

MOST_PIXELS = 200_000_000
"""Of one stored image: a thread's scratch follows the largest one that the metadata speak of."""

Table = npt.NDArray[np.void]


def tables_sha256(beton: Path) -> str:
    """Return the hexadecimal SHA-256 of everything in a container but the samples' own bytes.

    About 100 bytes per sample are read: 0.1 s for the 1.3 million of ImageNet from a warm cache.
    """
    digest = hashlib.sha256()
    with open(beton, "rb") as stream:
        head = stream.read(HeaderType.itemsize)
        header = np.frombuffer(head, HeaderType)[0]
        count, fields = int(header["num_samples"]), int(header["num_fields"])
        digest.update(head)
        digest.update(stream.read(fields * FieldDescType.itemsize + count * METADATA_TYPE.itemsize))
        stream.seek(int(header["alloc_table_ptr"]))
        digest.update(stream.read())
    return digest.hexdigest()


def impossible(beton: Path, *, count: int, counts: Sequence[int], table_at: int) -> str:
    """Return what cannot be true in a container's metadata and allocation table, or "".

    count: samples, as header, manifest and the table's size agree. counts: the manifest's, of each
    class. table_at: byte where the allocation table starts.
    """
    metadata = np.fromfile(beton, METADATA_TYPE, count=count, offset=METADATA_START)
    table = np.fromfile(beton, ALLOC_TABLE_TYPE, offset=table_at)
    start = METADATA_START + metadata.nbytes
    return _wrong_table(table, start, table_at) or _wrong_rows(metadata, table, counts)


def _wrong_table(table: Table, start: int, stop: int) -> str:
    ptr, size = table["ptr"], table["size"]
    # Compared so that sums of wild unsigned numbers cannot come round to plausible ones.
    outside = (ptr < start) | (ptr > stop) | (size > stop - np.minimum(ptr, stop)) | (size == 0)
    if outside.any():
        row = table[int(np.argmax(outside))]
        return (
            f"{int(row['size']):,} bytes of sample {int(row['sample_id'])} at byte "
            f"{int(row['ptr']):,}, outside the data"
        )
    order = np.argsort(ptr, kind="stable")
    if (ptr[order][1:] < ptr[order][:-1] + size[order][:-1]).any():
        return "stored images or masks that overlap"
    return ""


def _wrong_rows(metadata: Table, table: Table, counts: Sequence[int]) -> str:
    image, label = metadata[IMAGE], metadata[LABEL].reshape(len(metadata))
    order = np.argsort(table["ptr"], kind="stable")
    ptr, size = table["ptr"][order], table["size"][order]
    places = []
    for field in (IMAGE, MASK):
        wanted = metadata[field]["data_ptr"]
        place = np.minimum(np.searchsorted(ptr, wanted), len(ptr) - 1)
        if (missing := ptr[place] != wanted).any():
            return f"an unknown address in sample {int(np.argmax(missing))}"
        places.append(place)
    checks = picture_faults(image, label, len(counts))
    checks["image of another size than its bytes"] = too_short(image, size[places[0]])
    for what, wrong in checks.items():
        if wrong.any():
            return f"an impossible {what} in sample {int(np.argmax(wrong))}"
    if counts and np.bincount(label, minlength=len(counts)).tolist() != list(counts):
        return "other numbers of samples per class than its manifest says"
    return ""


def picture_faults(
    image: Table, label: npt.NDArray[np.int64], classes: int
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which of (N,) records of FFCV's image field and labels cannot be, by what is wrong."""
    height, width = image["height"], image["width"]
    labels = (0, classes - 1) if classes else (UNLABELLED, UNLABELLED)
    return {
        "image mode": image["mode"] >= len(MODE_NAMES),
        "image without area": (height == 0) | (width == 0),
        f"image of more than {MOST_PIXELS:,} pixels": height * width.astype(np.int64) > MOST_PIXELS,
        "label": (label < labels[0]) | (label > labels[1]),
    }


def too_short(image: Table, size: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Return which of (N,) images, with mode, height and width, need more than their (N,) bytes."""
    short = size < 1
    for mode in set(range(len(MODE_NAMES))) - {MODE_JPG}:
        if len(own := np.flatnonzero(image["mode"] == mode)):
            height: Any = image["height"][own].astype(np.int64)  # arrays serve as well as numbers
            width: Any = image["width"][own].astype(np.int64)
            least = stored_bytes(mode, height, width)
            short[own] = size[own].astype(np.int64) < least
    return short
