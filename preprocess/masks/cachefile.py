"""One file of a mask cache: the masks of up to 256 images, with a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from harl_fast.errors import DataError, one_line
from harl_fast.files import write_bytes
from harl_fast.textfile import parse_json
from preprocess.masks.controls import CANVAS_PX
from preprocess.masks.runner import CachedMask, Fingerprint

SOUND, STAND_IN, UNREADABLE = 0, 1, 2
"""What a row's mask is: the method's, the centre ellipse, nothing (the image did not decode)."""
_BYTES = CANVAS_PX * CANVAS_PX // 8
_COLUMNS = {
    "bits": (np.dtype(np.uint8), (_BYTES,)),
    "state": (np.dtype(np.uint8), ()),
    "files": (np.dtype(np.int64), (3,)),
}
"""dtype and shape of a row: `pack_mask` at 128 x 128; one of the states; a `Fingerprint`."""


class DamagedError(Exception):
    """A cache file that cannot serve; the message says why."""


@dataclass(frozen=True)
class Row:
    """The mask of one image."""

    name: str
    kept: CachedMask


def write_rows(path: Path, rows: list[Row], *, key: str) -> None:
    """Write the masks in one atomic step as safetensors, the texts as JSON in its header.

    key: of the method and the frame, see `cache.describe`.
    """
    empty = bytes(_BYTES)
    bits = b"".join(row.kept.bits or empty for row in rows)
    tensors = {
        "bits": np.frombuffer(bits, np.uint8).reshape(len(rows), _BYTES),
        "state": np.array([_state(row.kept) for row in rows], np.uint8),
        "files": np.array([row.kept.of for row in rows], np.int64).reshape(len(rows), 3),
    }
    texts = {
        "key": key,
        "names": json.dumps([row.name for row in rows]),
        "problems": json.dumps([row.kept.problem for row in rows]),
    }
    # One text, since safetensors writes several in any order: equal masks are equal files.
    header = json.dumps({**texts, "sha256": _digest(tensors, texts)})
    content = save(tensors, {"masks": header})
    write_bytes(path, content)


def read_rows(path: Path, *, key: str) -> list[Row]:
    """Return the masks of a file; `DamagedError` if it is not whole or of another method."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = (file.metadata() or {}).get("masks", "{}")
            texts = parse_json(header, where="header", error=DataError)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, DataError) as error:
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
    return [
        Row(
            name,
            CachedMask(
                b"" if state == UNREADABLE else bits.tobytes(),
                state == STAND_IN,
                problem,
                Fingerprint(*file.tolist()),
            ),
        )
        for name, bits, state, file, problem in zip(
            names,
            tensors["bits"],
            tensors["state"].tolist(),
            tensors["files"],
            problems,
            strict=True,
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


def _state(kept: CachedMask) -> int:
    if not kept.bits:
        return UNREADABLE
    return STAND_IN if kept.stand_in else SOUND


def _digest(tensors: dict[str, npt.NDArray[np.generic]], texts: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
