"""Samples inside the files of a source, tar shards or tables: names, labels, splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np

from harl_fast.errors import DataError, one_line, shown
from preprocess.images.members import Members
from preprocess.sources.base import NO_LABELS, WITHOUT_COLUMN, Choices, Rejected, Source, Split
from preprocess.sources.layout import HELD_OUT, stated_split
from preprocess.sources.stated import Row, stated_classes, stated_splits, used_rows

_SHOWN = 5


def split_of(file: Path, base: Path) -> str:
    """Return the split that a shard's name states, else the folders between it and ``base``, or "".

    ``train-0001.tar``, ``imagenet-validation-00.tar`` and ``test/0000.parquet`` state one.
    """
    within = file.relative_to(base) if file.is_relative_to(base) else PurePath(file.name)
    for part in (within.stem, *reversed(within.parts[:-1])):
        if split := stated_split(part):
            return split
    return ""


def sample_name(split: str, label: str, inner: str) -> str:
    """Return a sample's name as a class folder has it: ``<split>/<class>/<inner>``.

    inner: its own; one with folders stands for itself, without the class.
    """
    kind = label.replace("/", "_") if label.strip(".") else "_" * bool(label)
    parts = [split, kind] if "/" not in inner else [split]
    return "/".join((*filter(None, parts), inner.removeprefix(f"{split}/")))


def label_text(value: object) -> str:
    """Return a label as text, numbers without leading zeros; "" for None and negative numbers.

    Raises `ValueError` for anything else than a text or a whole number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{shown(value)} is neither a text nor a whole number")
    text = str(value).strip()
    if re.fullmatch("-?[0-9]{1,18}", text, re.ASCII):
        return str(int(text)) if int(text) >= 0 else ""
    return text


def unique_names(names: Sequence[str]) -> tuple[list[str], int]:
    """Return names of which none stands twice, and how many were changed.

    A name that was there before gets a number behind its stem: ``a/1.jpg``, ``a/1-2.jpg``.
    """
    taken, found, changed = set(names), list[str](), 0
    seen, last = set[str](), dict[str, int]()
    for name in names:
        number, own = last.get(name, 1), name  # all below that are taken
        stem, mark, suffix = name.rpartition(".")
        while own in seen or (own != name and own in taken):
            number += 1
            own = f"{stem}-{number}.{suffix}" if mark else f"{name}-{number}"
        seen.add(own)
        last[name] = number
        changed += own != name
        found.append(own)
    return found, changed


class Sample(Row, Protocol):
    """One image in one of a source's files."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> tuple[int, ...]:
        """Number of the file, and the arguments of its kind of `Member` after the file's own."""


def sample_source(
    path: Path,
    samples: Sequence[Sample],
    held: Callable[[Any], Members],
    choices: Choices,
    *,
    rejected: Sequence[tuple[str, Rejected]],
    notes: Sequence[str],
) -> Source:
    """Return the source of some samples; raises `DataError` for classes that cannot be used.

    held: makes the members of an array of places. rejected: with the split of each.
    """
    rows, said = used_rows(str(path), list(samples))
    classes, labels = stated_classes(
        str(path), rows, least=choices.least_classes, without=WITHOUT_COLUMN
    )
    if not classes and choices.label_column not in (None, NO_LABELS):
        raise DataError(f"{path}: no image has a label by --label-column {choices.label_column}")
    names, changed = unique_names([row.name for row in rows])
    if changed:
        said.append(f"{changed:,} samples had the name of another: theirs got a number")
    members = held(np.array([row.place for row in rows], np.int64))
    whole = Split(names, labels, members=members)
    splits, more = stated_splits(str(path), rows, whole, choices)
    if rejected:
        first = f"{rejected[0][1].name}: {rejected[0][1].reason}"
        more.append(f"{len(rejected):,} are left out (first: {one_line(first)})")
    for name, split in splits.items():
        own = [one for part, one in rejected if (part.lower() in HELD_OUT) == (name == "val")]
        splits[name] = replace(split, rejected=own)
    return Source(one_line(path.stem), classes, splits, [*notes, *said, *more])


def check_whole(path: Path, broken: Sequence[Rejected], files: int, choices: Choices) -> list[str]:
    """Return lines for the user on a source's files that are broken; `DataError` if unwanted."""
    if not broken:
        return []
    shown = [f"{one_line(each.name)} ({one_line(each.reason)})" for each in broken[:_SHOWN]]
    listed = "; ".join(shown) + ("; ..." if len(broken) > _SHOWN else "")
    said = f"{len(broken):,} of {files:,} files cannot be read: {listed}"
    if choices.skip_broken and len(broken) < files:
        return [f"{said}. They are left out"]
    remedy = "" if choices.skip_broken else ", or go on without them: --skip-broken"
    raise DataError(f"{path}: {said}. Get them again{remedy}")
