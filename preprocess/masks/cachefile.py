"""One file of a mask cache: the masks of up to 256 images, with a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from harl_fast.errors import DataError, one_line
from harl_fast.files import open_regular, write_bytes
from harl_fast.textfile import parse_json
from preprocess.images.decode import open_file
from preprocess.images.members import FileRef, written_ns
from preprocess.masks.controls import CANVAS_PX

SOUND, STAND_IN, UNREADABLE = 0, 1, 2
"""What a row's mask is: the method's, the centre ellipse, nothing (the image did not decode)."""
_BYTES = CANVAS_PX * CANVAS_PX // 8
_COLUMNS = {
    "bits": (np.dtype(np.uint8), (_BYTES,)),
    "state": (np.dtype(np.uint8), ()),
    "files": (np.dtype(np.int64), (3,)),
}
"""dtype and shape per row: `pack_mask` at 128 x 128; one of the states; a `Fingerprint`."""


class DamagedError(Exception):
    """A cache file that cannot serve; the message says why."""


class Fingerprint(NamedTuple):
    """What tells an image from a changed one: same size, and same time or same content."""

    size: int
    mtime_ns: int
    """Of the file that holds it."""
    crc: int
    """CRC-32 of its bytes."""

    @staticmethod
    def of(image: FileRef) -> Fingerprint:
        """Return an image's fingerprint; reads all of it."""
        mtime_ns = written_ns(_holder(image).stat())
        size = crc = 0
        with open_file(image) as stream:
            while block := stream.read(1 << 20):
                size, crc = size + len(block), zlib.crc32(block, crc)
        return Fingerprint(size, mtime_ns, crc)

    def fits(self, image: FileRef) -> bool:
        """Return whether an image is unchanged; reads it only if its time differs, as a copy's."""
        try:
            status = _holder(image).stat()
            if isinstance(image, Path) and status.st_size != self.size:
                return False
            if written_ns(status) == self.mtime_ns:
                return True
            return Fingerprint.of(image)._replace(mtime_ns=self.mtime_ns) == self
        except OSError:
            return False


def _holder(image: FileRef) -> Path:
    return image if isinstance(image, Path) else image.path


class CachedMask(NamedTuple):
    """The mask of one image."""

    name: str
    """Of the image, such as ``train/<class>/<stem>.jpg``."""
    bits: bytes
    """`pack_mask` at `CANVAS_PX`; empty if the image could not be read."""
    stand_in: bool
    problem: str
    """Why a fall-back serves, or why there is no mask."""
    image: Fingerprint


def write_masks(path: Path, masks: list[CachedMask], *, key: str) -> None:
    """Write masks in one atomic step as safetensors, the texts as JSON in its header.

    key: of the method and the frame, see `cache.describe`.
    """
    bits = b"".join(mask.bits or bytes(_BYTES) for mask in masks)
    states = [(STAND_IN if m.stand_in else SOUND) if m.bits else UNREADABLE for m in masks]
    tensors: dict[str, npt.NDArray[Any]] = {
        "bits": np.frombuffer(bits, np.uint8).reshape(len(masks), _BYTES),
        "state": np.array(states, np.uint8),
        "files": np.array([mask.image for mask in masks], np.int64).reshape(len(masks), 3),
    }
    texts = {
        "key": key,
        "names": json.dumps([mask.name for mask in masks]),
        "problems": json.dumps([mask.problem for mask in masks]),
    }
    # One text, since safetensors writes several in any order: equal masks are equal files.
    header = json.dumps({**texts, "sha256": _digest(tensors, texts)})
    write_bytes(path, save(tensors, {"masks": header}))


def read_masks(path: Path, *, key: str) -> list[CachedMask]:
    """Return the masks of a file; `DamagedError` if it is not whole or of another method."""
    try:
        open_regular(path).close()  # a pipe would wait for its writer
        with safe_open(str(path), framework="numpy") as file:
            header = (file.metadata() or {}).get("masks", "{}")
            texts = parse_json(header, where="header", error=DataError)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, DataError) as error:
        raise DamagedError(f"does not read ({one_line(str(error))[:200]})") from error
    digest = texts.pop("sha256", "")
    if texts.keys() != {"key", "names", "problems"} or tensors.keys() != _COLUMNS.keys():
        raise DamagedError("lacks parts")
    if digest != _digest(tensors, texts):
        raise DamagedError("has another checksum")
    if texts["key"] != key:
        raise DamagedError("comes from another method or other settings")
    names, problems = (_texts(texts[key]) for key in ("names", "problems"))
    for name, (dtype, shape) in _COLUMNS.items():
        if tensors[name].dtype != dtype or tensors[name].shape != (len(names), *shape):
            raise DamagedError(f"holds {name} of shape {tensors[name].shape}")
    if len(names) != len(problems):
        raise DamagedError(f"holds {len(names)} names and {len(problems)} problems")
    bits, states, files = (tensors[column] for column in _COLUMNS)
    return [
        CachedMask(
            name,
            b"" if state == UNREADABLE else row.tobytes(),
            state == STAND_IN,
            problem,
            Fingerprint(*file),
        )
        for name, row, state, problem, file in zip(
            names, bits, states.tolist(), problems, files.tolist(), strict=True
        )
    ]


def _texts(text: Any) -> list[str]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DamagedError("holds no list of texts in its header")
    return found


def _digest(tensors: dict[str, npt.NDArray[Any]], texts: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
