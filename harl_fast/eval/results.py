"""The result of one evaluation: a folder of files that other programs read.

``RUN/eval/<data>-<protocol>/`` holds ``result.json`` (see `Result`; written last, so that a folder
with it is complete), ``per_class.csv`` (class, count, correct, accuracy in percent),
``predictions.npz`` (see `Result.predictions`; ids and names beside it) and, of a linear head,
``head.safetensors``.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from harl_fast import __version__
from harl_fast.errors import DataError, nearest, one_line, shown
from harl_fast.eval.metrics import Predictions, Score, per_class
from harl_fast.files import open_regular, replacing, to_stderr, write_bytes, write_json
from harl_fast.host import utc_time
from harl_fast.tensorfile import open_tensors, writing
from harl_fast.textfile import read_json

FORMAT = 1
RESULT, PER_CLASS, PREDICTIONS, HEAD = (
    "result.json",
    "per_class.csv",
    "predictions.npz",
    "head.safetensors",
)
HEADLINES = ("top1", "mean_per_class")
MOST_BYTES = 1 << 28
"""Largest result.json that is read."""


@dataclass(frozen=True)
class Head:
    """One affine layer from features to class scores; standardisation is folded in."""

    weight: Tensor
    """(K, D) float32."""
    bias: Tensor
    """(K,) float32."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return (N, K) scores of (N, D) features."""
        return features @ self.weight.T.to(features.device) + self.bias.to(features.device)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one protocol found of one checkpoint on one data set."""

    protocol: str
    """cached, logreg, imagenet, or the name of a fine-tuning preset."""
    headline: str
    """Which metric to quote: one of `HEADLINES`."""
    data: dict[str, Any]
    """name, classes (list), train_sha256, val_sha256, train_count, val_count, split ("official" or
    "own split")."""
    checkpoint: dict[str, Any]
    """path, run, step, weights_sha256 of the backbone that was judged, and its receipt; of one that
    was fine-tuned also ``pretrained``, the same of what it began with, whose receipt it has."""
    preprocessing: dict[str, Any]
    """size_px, crop, mean, std, precision."""
    metrics: dict[str, Score]
    """top1, top5, mean_per_class in percent on the validation split."""
    predictions: Predictions
    """Of the validation split, in the order of `ids`."""
    ids: Tensor
    """(N,) int64: sample ids in the validation container."""
    names: list[str]
    """N sample names."""
    seed: int
    knn: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Metrics by k, written as a number ("20")."""
    choice: dict[str, Any] = field(default_factory=dict)
    """The chosen setting, and how it was chosen."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """Every setting that was tried, with what it reached on held-out training samples."""
    head: Head | None = None
    created: str = field(default_factory=utc_time)
    versions: dict[str, str] = field(default_factory=lambda: versions())


_ARRAYS = ("predictions", "ids", "names", "head")
"""What `result.json` does not hold."""


def versions() -> dict[str, str]:
    """Return the versions of what computes a result."""
    return {
        "harl_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def classes_sha256(classes: Sequence[str]) -> str:
    """Return the digest of class names in their order, by which a head knows its classes."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()


def result_folder(run: Path, *, data: str, protocol: str) -> Path:
    """Return where a run keeps its result: ``run/eval/<data>-<protocol>``."""
    return run / "eval" / f"{data}-{protocol}"


def write_result(folder: Path, result: Result) -> Path:
    """Write a result's files into ``folder`` and return the folder.

    A result of another checkpoint, other data or another preprocessing that lies there is kept as
    ``<folder>-<number>``, which is said; one of the same is replaced. Raises OSError.
    """
    record = _record(result)
    _keep_another(folder, record)
    (folder / RESULT).unlink(missing_ok=True)
    classes = result.data["classes"]
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("class", "count", "correct", "accuracy"))
    rows.writerows(
        (name, count, hits, f"{share:.4f}")
        for name, count, hits, share in per_class(result.predictions, classes)
    )
    write_bytes(folder / PER_CLASS, text.getvalue().encode("utf-8", "surrogateescape"))
    with replacing(folder / PREDICTIONS) as temporary, open(temporary, "wb") as stream:
        found = {k: v.numpy() for k, v in vars(result.predictions).items()}
        np.savez(stream, ids=result.ids.numpy(), names=np.array(result.names, dtype=str), **found)
    if result.head is None:
        (folder / HEAD).unlink(missing_ok=True)
    else:
        write_head(folder / HEAD, result.head, classes=classes)
    write_json(folder / RESULT, record)
    return folder


def write_head(path: Path, head: Head, *, classes: Sequence[str]) -> None:
    """Write a head with the digest of its classes. Raises OSError."""
    tensors = {"weight": head.weight, "bias": head.bias}
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}
    about = {"classes_sha256": classes_sha256(classes), "classes": str(len(classes))}
    with replacing(path) as temporary, writing(path):
        save_file(tensors, temporary, metadata=about)


def read_head(path: Path, *, classes: Sequence[str] | None = None) -> Head:
    """Return a head; DataError if it cannot be read or belongs to other classes."""
    try:
        with open_tensors(path) as file:
            head = Head(file.get_tensor("weight"), file.get_tensor("bias"))
            made_for = (file.metadata() or {}).get("classes_sha256")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read as a linear head ({error})") from error
    if classes is not None and made_for != classes_sha256(classes):
        raise DataError(
            f"{path} was trained for {head.bias.shape[0]} other classes, or the same in another "
            f"order, than these {len(classes)} ({', '.join(map(shown, classes[:3]))}, ...): give "
            f"the head of a result on this data set"
        )
    return head


def read_result(folder: Path) -> Result:
    """Return the result in a folder; DataError naming the file if it is none or not whole.

    folder: also the path of its ``result.json``.
    """
    folder = folder.parent if folder.name == RESULT else folder
    path = folder / RESULT
    if not path.is_file():
        near = nearest(folder.name, (p.parent.name for p in folder.parent.glob(f"*/{RESULT}")))
        raise DataError(f"{path} does not exist: give a folder that `make lineval` wrote{near}")
    tree = read_json(path, error=DataError, most_bytes=MOST_BYTES)
    if tree.get("format") != FORMAT:
        raise DataError(
            f"{path}: format is {shown(tree.get('format'))}, this program reads {FORMAT}"
        )
    names = [f.name for f in dataclasses.fields(Result) if f.name not in _ARRAYS]
    if missing := [name for name in names if name not in tree]:
        raise DataError(f"{path} lacks {missing[0]}: run the evaluation again")
    try:
        found = {name: tree[name] for name in names}
        found["metrics"] = _scores(tree["metrics"])
        found["knn"] = {k: _scores(each) for k, each in tree["knn"].items()}
    except (TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): run the evaluation again") from error
    head = folder / HEAD
    return Result(
        **found,
        **_arrays(folder / PREDICTIONS),
        head=read_head(head, classes=found["data"]["classes"]) if head.exists() else None,
    )


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        fields = [f.name for f in dataclasses.fields(Predictions)]
        found = Predictions(**{name: torch.from_numpy(arrays[name]) for name in fields})
        return {
            "predictions": found,
            "ids": torch.from_numpy(arrays["ids"]),
            "names": arrays["names"].tolist(),
        }
    except (
        OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError, BadZipFile
    ) as error:  # fmt: skip
        raise DataError(f"{path} cannot be read ({error}): run the evaluation again") from error


def _record(result: Result) -> dict[str, Any]:
    record = {
        f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in _ARRAYS
    }
    record["metrics"] = {k: dataclasses.asdict(v) for k, v in result.metrics.items()}
    record["knn"] = {
        k: {name: dataclasses.asdict(score) for name, score in each.items()}
        for k, each in result.knn.items()
    }
    made: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **record}))
    return {key: _plain(value) for key, value in made.items()}


def _plain(value: Any) -> Any:
    """Return JSON values with None for numbers that are not finite, which JSON has not."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scores(tree: Mapping[str, Mapping[str, float]]) -> dict[str, Score]:
    return {name: Score(**each) for name, each in tree.items()}


def _keep_another(folder: Path, record: Mapping[str, Any]) -> None:
    """Rename a folder with the result of anything else than ``record`` is of, and say so."""
    if not (folder / RESULT).exists():
        return
    try:
        old = read_json(folder / RESULT, error=DataError, most_bytes=MOST_BYTES)
    except DataError:
        old = {}
    parts = ("protocol", "data", "checkpoint", "preprocessing", "seed")
    if other := [name for name in parts if old.get(name) != record[name]]:
        number = 1
        while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
            number += 1
        folder.rename(kept)
        to_stderr(one_line(f"note: {folder} was of other {', '.join(other)}; kept as {kept}"))
