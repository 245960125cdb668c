"""Results that are put side by side: which belong together, and how they differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harl_fast.errors import DataError, shown
from harl_fast.eval.metrics import per_class
from harl_fast.eval.results import RESULT, Result, read_result, result_folder, results_in
from harl_fast.tools.paired import Difference, Right, paired_difference

LISTED = 10
"""Classes won and lost that are listed."""


@dataclass(frozen=True)
class Change:
    """What became of one class."""

    name: str
    count: int
    """Its validation samples."""
    before: float
    after: float
    """Accuracy in percent of the first result and of this one."""

    @property
    def points(self) -> float:
        """The difference, in points of percent."""
        return self.after - self.before


@dataclass(frozen=True)
class Entry:
    """One result beside the first one."""

    name: str
    """Run and step, told apart from the other entries'."""
    folder: Path
    result: Result
    differences: dict[str, Difference] = field(default_factory=dict)
    """By metric; empty for the first result, and where the samples are not the same."""
    won: list[Change] = field(default_factory=list)
    lost: list[Change] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Several results, the first being what the others are compared with."""

    entries: list[Entry]
    warnings: list[str]
    """What makes the results incomparable and was let pass by --force."""
    by_seed: dict[int, Comparison] = field(default_factory=dict)
    """Of folders of several seeds: the comparison of each seed's results, see `tools.seeds`."""


def find_results(paths: Sequence[Path]) -> list[Path]:
    """Return the result folder that each argument stands for.

    A run stands for its result of the data and protocol that all arguments have one of. Raises
    DataError if there is none, or more than one.
    """
    found = [_results_of(path) for path in paths]
    shared = set.intersection(*({_kind(result) for result in each.values()} for each in found))
    chosen: list[Path] = []
    for path, known in zip(paths, found, strict=True):
        folders = [*known]
        if len(folders) > 1:
            folders = [folder for folder in folders if _kind(known[folder]) in shared]
        if len(folders) != 1:
            several = sorted(folder.name for folder in known)
            raise DataError(
                f"{path} has {len(several)} results ({', '.join(several[:6])}), of which "
                f"{len(folders)} are there for all arguments: give one, such as "
                f"{path / 'eval' / several[0]}"
            )
        chosen += folders
    for folder in chosen:
        if chosen.count(folder) > 1:
            raise DataError(f"{folder} is given twice: give each result once")
    return chosen


def _results_of(path: Path) -> dict[Path, Result]:
    """Return what an argument may stand for, by folder."""
    if path.name == RESULT:
        path = path.parent
    if not path.is_dir():
        raise DataError(f"{path} does not exist: give folders of results, or runs that have some")
    if (path / RESULT).is_file():
        return {path.resolve(): read_result(path)}
    found = dict(results_in(path, left_out="the comparison"))
    # The latest results; those of a random encoder and of earlier steps stand beside them.
    latest = {
        folder: result
        for folder, result in found.items()
        if folder == result_folder(path, data=result.data["name"], protocol=result.protocol)
    }
    if not found:
        raise DataError(
            f"{path} holds neither {RESULT} nor eval/*/{RESULT} that can be read: make one with "
            f"`make lineval CKPT={path} DATA=<containers>`"
        )
    return {folder.resolve(): result for folder, result in (latest or found).items()}


def _kind(result: Result) -> tuple[str, str]:
    """Return the data and the protocol of a result, its baseline or an earlier one."""
    return result.data["name"], result.protocol


def compare(paths: Sequence[Path], *, force: bool = False, seed: int = 0) -> Comparison:
    """Return results side by side; DataError unless all are of one data, size and protocol.

    paths: results or runs, at least two, see `find_results`. force: tell what differs in
    `Comparison.warnings` instead. seed: of the bootstrap.
    """
    if len(paths) < 2:
        raise DataError(f"{len(paths)} results are no comparison: give two or more")
    folders = find_results(paths)
    results = [read_result(folder) for folder in folders]
    names = _names(folders, results)
    warnings = [
        f"{name}: {difference}"
        for name, result in zip(names[1:], results[1:], strict=True)
        for difference in differing(results[0], result)
    ]
    if not force:
        refuse(warnings, base=names[0])
    entries = [Entry(names[0], folders[0], results[0])]
    for name, folder, result in zip(names[1:], folders[1:], results[1:], strict=True):
        entries.append(Entry(name, folder, result, *_beside(result, results[0], seed=seed)))
    return Comparison(entries, warnings)


def refuse(warnings: Sequence[str], *, base: str) -> None:
    """Raise DataError if there is a warning. base: what the results are compared with."""
    if warnings:
        more = f" and {len(warnings) - 1} more such" if len(warnings) > 1 else ""
        raise DataError(
            f"not comparable with {base}: {warnings[0]}{more}. Evaluate all checkpoints alike "
            f"(`make lineval`), or let --force mark the report"
        )


def differing(base: Result, other: Result) -> list[str]:
    """Return in what two results differ that have to agree for a comparison, as text."""
    ours, theirs = _facts(base), _facts(other)
    found = [
        f"{name} is {shown(theirs[name])}, not {shown(ours[name])}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    if base.data["classes"] != other.data["classes"]:
        found.append("the classes, or their order, are others")
    elif not same_samples(base, other):
        found.append("the validation samples are others, or their labels")
    return found


def _facts(result: Result) -> dict[str, Any]:
    """Return what has to agree, by name; settings where they were recorded."""
    data, seen = result.data, result.preprocessing
    return {
        "protocol": result.protocol,
        "training container": str(data.get("train_sha256"))[:12],
        "validation container": str(data.get("val_sha256"))[:12],
        "number of training samples": data.get("train_count"),
        "SHA-256 of the training subset": str(data.get("subset_sha256", ""))[:12],
        "number of validation samples": data.get("val_count"),
        "image size": seen.get("size_px"),
        "crop": seen.get("crop"),
        **{f"setting {name}": value for name, value in result.settings.items()},
    }


def freshly_initialised(result: Result) -> bool:
    """Return whether a result is of the random baseline of a checkpoint, see `random_like`."""
    tuned = "pretrained" in result.checkpoint
    return not tuned and str(result.checkpoint.get("receipt")).startswith("0/")


def same_samples(base: Result, other: Result) -> bool:
    """Return whether two results judge the same samples with the same labels, in any order."""
    (ids, labels), (others, theirs) = (_sorted(each)[:2] for each in (base, other))
    return np.array_equal(ids, others) and np.array_equal(labels, theirs)


def _sorted(result: Result) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Right, Right]:
    """Return ids, labels and whether top-1 and top-5 are right, by id."""
    order, found = np.argsort(result.ids.numpy(), kind="stable"), result.predictions
    labels = found.labels.numpy()
    right = found.predicted.numpy() == labels
    near = (found.top5.numpy() == labels[:, None]).any(1)
    return result.ids.numpy()[order], labels[order], right[order], near[order]


def _beside(
    result: Result, base: Result, *, seed: int
) -> tuple[dict[str, Difference], list[Change], list[Change]]:
    """Return a result's differences to the first, and its classes most won and lost."""
    if not same_samples(base, result) or base.data["classes"] != result.data["classes"]:
        return {}, [], []
    _, labels, before, near_before = _sorted(base)
    _, _, after, near_after = _sorted(result)
    pairs = {"top1": (after, before), "top5": (near_after, near_before)}
    differences = {
        metric: paired_difference(*pair, labels, per_class=False, seed=seed)
        for metric, pair in pairs.items()
    }
    differences["mean_per_class"] = paired_difference(
        after, before, labels, per_class=True, seed=seed
    )
    return differences, *class_changes([result], [base])


def class_changes(
    results: Sequence[Result], bases: Sequence[Result]
) -> tuple[list[Change], list[Change]]:
    """Return the classes most won and lost by results, on average, to those they are paired with.

    All judge the same samples, see `same_samples`.
    """
    tables = [
        [per_class(each.predictions, each.data["classes"]) for each in part]
        for part in (bases, results)
    ]
    shares = (np.mean([[row[3] for row in rows] for rows in part], axis=0) for part in tables)
    changes = [
        Change(name, count, float(before), float(after))
        for (name, count, *_), before, after in zip(tables[0][0], *shares, strict=True)
        if count
    ]
    changes.sort(key=lambda change: -change.points)
    won = [change for change in changes if change.points > 0]
    lost = [change for change in reversed(changes) if change.points < 0]
    return won[:LISTED], lost[:LISTED]


def _names(folders: Sequence[Path], results: Sequence[Result]) -> list[str]:
    """Return a name for each result: its run and step, and what tells equal ones apart."""
    names = []
    for result in results:
        source, step = result.checkpoint, result.checkpoint.get("step")
        place = Path(str(source.get("run") or source.get("path") or "checkpoint"))
        one_of_several = re.fullmatch(r"seed-[0-9]+", place.name)
        run = f"{place.parent.name}/{place.name}" if one_of_several else place.name
        if freshly_initialised(result):
            names.append(f"{run} random")
        else:
            names.append(run if step is None else f"{run} step {step}")
    if len(set(names)) < len(names):
        names = [f"{name} ({folder.name})" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    return names
