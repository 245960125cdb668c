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
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor

from harl_fast import __version__
from harl_fast.errors import DataError, nearest, one_line, shown
from harl_fast.eval.metrics import NO_CLASS, Predictions, Score, per_class
from harl_fast.eval.resultfile import ResultFile
from harl_fast.files import (
    BROKEN_ARRAYS,
    naming,
    open_regular,
    replacing,
    sha256_file,
    short_temporary,
    sync,
    to_stderr,
    uninterrupted,
    write_bytes,
    write_json,
)
from harl_fast.host import utc_time
from harl_fast.kinds import of_kind
from harl_fast.runfiles import RESULT_FILES, RunFolder
from harl_fast.tensorfile import grows, open_tensors, save_tensors
from harl_fast.textfile import read_json

FORMAT = 1
RESULT, PER_CLASS, PREDICTIONS, HEAD = RESULT_FILES
_UNNAMED = f".{RESULT}"
"""Name of a `RESULT` as long as its folder has no name either."""
LONGEST_NAME = 160
"""Most bytes of a data set's name in that of a folder; file systems take 255 in all."""
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
    """Which metric to quote: top1 or mean_per_class."""
    data: dict[str, Any]
    """name, classes (list), train_sha256, val_sha256, train_count, val_count, split ("official" or
    "own split"), subset_sha256 (of the ids of the training samples; empty for all)."""
    checkpoint: dict[str, Any]
    """path, run, step, weights_sha256 of the backbone that was judged, and its receipt; of one that
    was fine-tuned also ``pretrained``, the same of what it began with, whose receipt it has."""
    preprocessing: dict[str, Any]
    """size_px, crop, mean, std, precision."""
    settings: dict[str, int | float] = field(default_factory=dict)
    """What else the metrics depend on that the protocol leaves open: epochs of the heads and
    knn_temperature, or the keys of `FinetuneConfig` for the length of a training. Empty in results
    that were written before these were recorded."""
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


_AGAIN = "Run the evaluation again"
_KINDS = {"i": "whole numbers", "f": "numbers", "U": "texts"}
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("i", ()),
    "names": ("U", ()),
    "labels": ("i", ()),
    "predicted": ("i", ()),
    "top5": ("i", (5,)),
    "probability": ("f", ()),
}
"""The arrays of `PREDICTIONS`: NumPy's kind of their values, and their shape behind N."""
_LEAST = {"labels": 0, "predicted": NO_CLASS, "top5": NO_CLASS}
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
    """Return where a run keeps its result: ``run/eval/<data>-<protocol>``.

    A name of data that leaves no room for what stands beside such folders is cut.
    """
    if len(os.fsencode(data)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:8]
        data = f"{os.fsencode(data)[:LONGEST_NAME].decode('utf-8', 'ignore')}-{digest}"
    return RunFolder(run).evaluations / f"{data}-{protocol}"


def write_result(folder: Path, result: Result) -> Path:
    """Write a result's files into ``folder`` and return the folder.

    A result of another checkpoint, other data, preprocessing or settings that lies there is kept
    as ``<folder>-<number>``, which is said; one of the same is replaced once all files of the new
    one are on the disk. Raises OSError.
    """
    record, fresh = _record(result), short_temporary(folder)
    shutil.rmtree(fresh, ignore_errors=True)  # of a killed process
    try:
        _write_files(fresh, result, record)
        with uninterrupted():
            _keep_another(folder, record)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RESULT).unlink(missing_ok=True)  # which stands for a whole folder
            (folder / HEAD).unlink(missing_ok=True)
            for name in (PER_CLASS, PREDICTIONS, HEAD):
                if (fresh / name).exists():
                    os.replace(fresh / name, folder / name)
            os.replace(fresh / _UNNAMED, folder / RESULT)
            sync(folder)
    except OSError as error:
        if error.filename is not None and Path(error.filename).parent == fresh:
            error.filename = str(folder / Path(error.filename).name.lstrip("."))
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _write_files(folder: Path, result: Result, record: Mapping[str, Any]) -> None:
    """Write a result's files into a new folder, in which none will find it."""
    classes = result.data["classes"]
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("class", "count", "correct", "accuracy"))
    rows.writerows(
        (name, count, hits, f"{share:.4f}")
        for name, count, hits, share in per_class(result.predictions, classes)
    )
    write_bytes(folder / PER_CLASS, text.getvalue().encode("utf-8", "surrogateescape"))
    path = folder / PREDICTIONS
    with replacing(path) as temporary, naming(path), open(temporary, "wb") as stream:
        found = {k: v.numpy() for k, v in vars(result.predictions).items()}
        np.savez(stream, ids=result.ids.numpy(), names=np.array(result.names, dtype=str), **found)
    if result.head is not None:
        write_head(folder / HEAD, result.head, classes=classes)
    beside = [folder / name for name in (PREDICTIONS, HEAD) if (folder / name).exists()]
    write_json(folder / _UNNAMED, {**record, "files": {p.name: sha256_file(p) for p in beside}})


def write_head(path: Path, head: Head, *, classes: Sequence[str]) -> None:
    """Write a head with the digest of its classes. Raises OSError."""
    tensors = {"weight": head.weight, "bias": head.bias}
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}
    about = {"classes_sha256": classes_sha256(classes), "classes": str(len(classes))}
    about["sha256"] = _sha256(tensors["weight"], tensors["bias"])
    with replacing(path) as temporary:
        save_tensors(temporary, tensors, metadata=about)


def _check_head(path: Path, head: Head) -> None:
    weight, bias = head.weight, head.bias
    fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and weight.numel() > 0
    if not (fits and weight.is_floating_point() and bias.is_floating_point()):
        raise DataError(
            f"{path} holds weights {tuple(weight.shape)} of {weight.dtype} and biases "
            f"{tuple(bias.shape)} of {bias.dtype}, which are no linear head. {_AGAIN}"
        )


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_head(path: Path, *, classes: Sequence[str] | None = None) -> Head:
    """Return a head; DataError if it cannot be read or belongs to other classes."""
    try:
        with open_tensors(path) as file:
            head = Head(file.get_tensor("weight"), file.get_tensor("bias"))
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read as a linear head ({error})") from error
    _check_head(path, head)
    # Heads that were written before checksums have none.
    if about.get("sha256") not in (None, _sha256(head.weight, head.bias)):
        raise DataError(f"{path} was changed or damaged after it was written. {_AGAIN}")
    made_for = about.get("classes_sha256")
    if classes is not None and (
        made_for != classes_sha256(classes) or len(classes) != len(head.bias)
    ):
        raise DataError(
            f"{path} was trained for {head.bias.shape[0]} other classes, or the same in another "
            f"order, than these {len(classes)} ({', '.join(map(shown, classes[:3]))}, ...): give "
            f"the head of a result on this data set"
        )
    return Head(head.weight.float(), head.bias.float())


def results_in(run: Path, *, left_out: str) -> Iterator[tuple[Path, Result]]:
    """Yield the results within a run by folder; one that cannot be read is told on standard error.

    left_out: what it is left out of.
    """
    for path in sorted(run.glob(f"eval/*/{RESULT}")):
        try:
            yield path.parent, read_result(path)
        except DataError as error:
            to_stderr(one_line(f"warning: left out of {left_out}: {error}"))


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
    known = of_kind(tree, ResultFile, where=str(path), remedy=_AGAIN, error=DataError)
    names = [f.name for f in dataclasses.fields(Result) if f.name not in _ARRAYS]
    found: dict[str, Any] = {name: tree.get(name) for name in names}
    found |= {"metrics": _scores(known.metrics), "settings": known.settings}
    found["knn"] = {k: _scores(each) for k, each in known.knn.items()}
    head, classes = folder / HEAD, found["data"]["classes"]
    result = Result(
        **found,
        **_arrays(folder / PREDICTIONS, classes=len(classes)),
        head=read_head(head, classes=classes) if head.exists() else None,
    )
    # Results that were written before these digests have none.
    for file in (folder / PREDICTIONS, head):
        digest = known.files.get(file.name)
        if digest is not None and file.exists() and sha256_file(file) != digest:
            raise DataError(f"{file} is not the one that {path} was written with. {_AGAIN}")
    return result


def _arrays(path: Path, *, classes: int) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            if grows(stream):
                raise DataError(f"{path} is compressed, and may take any memory. {_AGAIN}")
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _COLUMNS}
    except BROKEN_ARRAYS as error:
        raise DataError(f"{path} cannot be read ({error}). {_AGAIN}") from error
    count = len(arrays["ids"].reshape(-1))
    for name, (kind, width) in _COLUMNS.items():
        array, shape = arrays[name], (count, *width)
        if array.dtype.kind != kind or array.shape != shape or not count:
            raise DataError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}, not {_KINDS[kind]} of "
                f"shape {shape}. {_AGAIN}"
            )
        if name in _LEAST and not _LEAST[name] <= array.min() <= array.max() < classes:
            raise DataError(
                f"{path}: {name} has {array.min()} to {array.max()}, which are no numbers of "
                f"{classes} classes. {_AGAIN}"
            )
    found = {f.name: torch.from_numpy(arrays[f.name]) for f in dataclasses.fields(Predictions)}
    return {
        "predictions": Predictions(**found),
        "ids": torch.from_numpy(arrays["ids"]),
        "names": arrays["names"].tolist(),
    }


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


def _scores(known: BaseModel) -> dict[str, Score]:
    return {name: Score(**each) for name, each in known.model_dump().items()}


def _keep_another(folder: Path, record: Mapping[str, Any]) -> None:
    """Rename a folder with the result of anything else than ``record`` is of, and say so."""
    if not (folder / RESULT).exists():
        return
    try:
        old = read_json(folder / RESULT, error=DataError, most_bytes=MOST_BYTES)
    except DataError:
        old = {}
    parts = ("protocol", "data", "checkpoint", "preprocessing", "settings", "seed")
    if other := [name for name in parts if _identity(old, name) != _identity(record, name)]:
        number = 1
        while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
            number += 1
        folder.rename(kept)
        to_stderr(one_line(f"note: {folder} was of other {', '.join(other)}; kept as {kept}"))


def _identity(record: Mapping[str, Any], name: str) -> Any:
    """Return what a part of a record is known by: a checkpoint not by its path, which changes."""
    part = record.get(name)
    if name != "checkpoint" or not isinstance(part, dict):
        return part
    before = part.get("pretrained") or {}
    return part.get("step"), part.get("weights_sha256"), before.get("weights_sha256")
