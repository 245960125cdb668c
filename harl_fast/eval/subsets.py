"""Subsets of a training set: given by a list of names, or drawn evenly over the classes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harl_fast.data.order import Ids
from harl_fast.errors import DataError, few, shown
from harl_fast.files import local_path, write_text
from harl_fast.textfile import read_text

_SHARE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)%")
_PER_CLASS = re.compile(r"([0-9]{1,9})-per-class")
_FORMS = "a file with a name per line, a share like 1% or 10%, or a number like 5-per-class"
_MOST_BYTES = 1 << 30


def choose(
    names: Sequence[str],
    labels: Tensor | npt.NDArray[np.integer],
    classes: Sequence[str],
    *,
    subset: str | Path,
    seed: int = 0,
) -> Tensor:
    """Return the ids of a subset of N samples, ascending (M,) int64.

    names: N source-relative paths. labels: (N,) indices into ``classes``.
    subset, one of:

    - a file with a name per line, such as ``n01440764_10026.JPEG`` or ``accordion/image_0001.jpg``:
      the last parts of a sample's path. Blank lines are passed over.
    - ``P%``: round(P N / 100) samples, at least one per class, the classes in turn, so that counts
      differ by one at most until a class has no more; a smaller share is part of any larger one.
    - ``n-per-class``: n samples of each class, and as such part of ``m-per-class`` for m > n.

    seed: of the draws, which depend on the names and not on their order. Raises DataError for names
    that are unknown, ambiguous or listed twice, and where a class is left without a sample.
    """
    found = np.asarray(labels, np.int64)
    ids = _drawn(names, found, classes, subset=str(subset), seed=seed)
    if ids is None:
        ids = _listed(names, local_path(subset))
    chosen = np.bincount(found[ids], minlength=len(classes))
    if empty := np.flatnonzero(chosen == 0).tolist():
        raise DataError(
            f"subset {shown(str(subset))} has no sample of {len(empty)} of the {len(classes)} "
            f"classes ({_examples(classes[i] for i in empty)}): a head cannot learn what it is "
            f"never shown. Add samples of each, or convert images without these classes"
        )
    return torch.from_numpy(np.sort(ids))


def hold_out(
    names: Sequence[str],
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    *,
    count: int,
    seed: int = 0,
) -> Ids:
    """Return the ids of at most ``count`` of N samples, ascending (M,) int64, each class in turn.

    names, labels, seed: as in `choose`, whose share would be the same samples; but here a class may
    be left out, and each class keeps a sample.
    """
    found = np.asarray(labels, np.int64)
    rank, turn = _dealt(names, found, classes, seed=seed)
    order = np.lexsort((turn, rank))
    counts = np.bincount(found, minlength=len(classes))
    spare = order[rank[order] < counts[found[order]] - 1]
    return np.sort(spare[:count])


def write_subset(path: Path, names: Sequence[str], ids: Tensor) -> None:
    """Write the names of a subset, one per line, as `choose` reads them back. Raises OSError."""
    write_text(path, "".join(f"{names[i]}\n" for i in ids.tolist()))


def ids_sha256(ids: Ids | None) -> str:
    """Return the digest of a subset's ids in their order; an empty text for all samples."""
    return "" if ids is None else hashlib.sha256(ids.tobytes()).hexdigest()


def _drawn(
    names: Sequence[str], labels: Ids, classes: Sequence[str], *, subset: str, seed: int
) -> Ids | None:
    """Return the ids of a share or a number per class; None for what may be a file."""
    counts = np.bincount(labels, minlength=len(classes))
    if match := _SHARE.fullmatch(subset):
        if not 0 < float(match[1]) <= 100:
            raise DataError(f"subset {subset}: a share lies above 0% and up to 100%")
        total = max(round(float(match[1]) / 100 * len(names)), int((counts > 0).sum()))
        rank, turn = _dealt(names, labels, classes, seed=seed)
        return np.lexsort((turn, rank))[:total]
    if match := _PER_CLASS.fullmatch(subset):
        number = int(match[1])
        if number < 1 or number > counts.min():
            least = classes[int(counts.argmin())]
            raise DataError(
                f"subset {subset}: class {shown(least)} has {counts.min()} samples; give a number "
                f"from 1 to {counts.min()}"
            )
        return np.flatnonzero(_dealt(names, labels, classes, seed=seed)[0] < number)
    return None


def _dealt(
    names: Sequence[str], labels: Ids, classes: Sequence[str], *, seed: int
) -> tuple[Ids, Ids]:
    """Return each sample's place in the random order of its class, and its class's among all."""
    keys = _keys(names, seed)
    order = np.lexsort((keys, labels))
    starts = np.cumsum(np.bincount(labels, minlength=len(classes)))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names)) - np.concatenate([[0], starts])[labels[order]]
    turn = np.argsort(np.argsort(_keys(classes, seed), kind="stable"))
    return rank, turn[labels]


def _keys(names: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    salt = f"{seed} ".encode()
    text = (salt + name.encode("utf-8", "surrogateescape") for name in names)
    digests = b"".join(hashlib.blake2b(each, digest_size=8).digest() for each in text)
    return np.frombuffer(digests, np.dtype("<u8"))


def _listed(names: Sequence[str], path: Path) -> Ids:
    """Return the ids of a file's names, in its order."""
    wanted = _lines(path, names)
    places = {
        name: found
        for depth in {name.count("/") + 1 for name in wanted}
        for name, found in _by_ending(names, depth, set(wanted)).items()
    }
    unclear = {name: len(found) for name, found in places.items() if len(found) > 1}
    if unclear:
        first = next(iter(unclear))
        raise DataError(
            f"{path}: {len(unclear)} of {len(wanted)} names are those of several samples "
            f"({_examples(unclear)}; {shown(first)} of {unclear[first]}): write them with their "
            f"folder, as class/name"
        )
    if unknown := [name for name in wanted if name not in places]:
        raise DataError(
            f"{path}: {len(unknown)} of {len(wanted)} names are no samples of the training set "
            f"({_examples(unknown)}; its own are like {_examples(names[:2])}): take the list that "
            f"belongs to these images"
        )
    ids = [places[name][0] for name in wanted]
    counts = Counter(ids)
    if twice := [name for name, row in zip(wanted, ids, strict=True) if counts[row] > 1]:
        raise DataError(
            f"{path} lists samples more than once under several names ({_examples(twice)}): list "
            f"each once"
        )
    return np.array(ids, np.int64)


def _lines(path: Path, names: Sequence[str]) -> list[str]:
    """Return the names that a file lists, each once; spaces around them count if ``names`` have."""
    if not path.exists():
        raise DataError(f"subset {shown(str(path))} is no file: give {_FORMS}")
    text = read_text(path, error=DataError, most_bytes=_MOST_BYTES)
    known, lines = set(names), (line for line in text.splitlines() if line.strip())
    wanted = [line if line in known else line.strip() for line in lines]
    if not wanted:
        raise DataError(f"{path} is empty: give {_FORMS}")
    if twice := [name for name, count in Counter(wanted).items() if count > 1]:
        raise DataError(
            f"{path} lists {len(twice)} names more than once ({_examples(twice)}): list each once"
        )
    return wanted


def _by_ending(names: Sequence[str], depth: int, wanted: set[str]) -> dict[str, list[int]]:
    """Return where each wanted name occurs as the last ``depth`` parts of a path."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        ending = "/".join(name.rsplit("/", depth)[-depth:])
        if ending in wanted:
            places.setdefault(ending, []).append(row)
    return places


def _examples(names: Iterable[str]) -> str:
    return few([shown(name) for name in names])
