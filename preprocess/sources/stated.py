"""Classes and splits that are stated per image: by lists, by tables, by members of tar shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from harl_fast.errors import DataError, few, one_line, shown
from preprocess.sources.base import UNLABELLED, Choices, Split
from preprocess.sources.heldout import hold_out, refuse_share
from preprocess.sources.layout import HELD_OUT, two_forms


class Row(Protocol):
    """One image; empty texts for what is not stated."""

    @property
    def label(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def where(self) -> str:
        """Where the statement stands, for messages."""


RowT = TypeVar("RowT", bound=Row)


def used_rows(source: str, rows: list[RowT]) -> tuple[list[RowT], list[str]]:
    """Return the rows of the training and of the held-out part, and what is said of others.

    source: what messages call it. Raises `DataError` for unknown splits, and for splits in some
    rows only.
    """
    found = Counter(row.split.lower() for row in rows)
    known = ("train", *HELD_OUT)
    if unknown := [row for row in rows if row.split.lower() not in ("", *known)]:
        raise DataError(
            f"{source} has {len(unknown):,} rows of other splits than {', '.join(known)} (first: "
            f"{shown(unknown[0].split)} in {unknown[0].where}): rename it or leave it out"
        )
    _check_all_or_none(
        source, rows, "split", "; that of shards and tables stands in the files' names"
    )
    if found[""]:
        return rows, []
    if not found["train"]:
        raise DataError(f"{source} has no row of the split train: name one so")
    held_out, *others = [name for name in HELD_OUT if found[name]] or [""]
    notes = [
        f"{found[name]:,} rows of the split {name} are not used: {held_out} is" for name in others
    ]
    train, val = ([row for row in rows if row.split.lower() == n] for n in ("train", held_out))
    if val and any(row.label for row in train) and not any(row.label for row in val):
        # So are the test sets of contests.
        notes.append(f"{len(val):,} rows of the split {held_out} are not used: they have no labels")
        return train, notes
    return [row for row in rows if row.split.lower() in ("train", held_out)], notes


def _check_all_or_none(source: str, rows: Sequence[Row], column: str, remedy: str) -> None:
    without = [row for row in rows if not getattr(row, column)]
    if 0 < len(without) < len(rows):
        raise DataError(
            f"{source} has a {column} in {len(rows) - len(without):,} of {len(rows):,} rows only "
            f"(first without: {without[0].where}): fill it in for all, or for none{remedy}"
        )


def stated_classes(
    source: str, rows: Sequence[Row], *, least: int, without: str
) -> tuple[list[str], list[int]]:
    """Return the labels that occur, numbers in their order, and each row's index into them.

    Without labels there are no classes, and the indices are `UNLABELLED`. Raises `DataError` for
    labels that cannot be used, or fewer than ``least``; ``without`` tells how to do without them.
    """
    _check_all_or_none(source, rows, "label", f". {without}")
    names = sorted({row.label for row in rows} - {""})
    if names and all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    if 0 < len(names) < least:
        raise DataError(
            f"{source} has only one label ({one_line(names[0])}); evaluation needs at least two. "
            f"{without}"
        )
    for name in names:
        if one_line(name) != name:
            raise DataError(
                f"{source} has a label that does not print ({one_line(name)}): rename it"
            )
    if twins := two_forms(names):
        raise DataError(
            f"{source} has two labels that both read {twins[0]}: {twins[0]!a} and "
            f"{twins[1]!a}, two Unicode forms of the same letters. Use one form"
        )
    numbers = {name: number for number, name in enumerate(names)} or {"": UNLABELLED}
    return names, [numbers[row.label] for row in rows]


def stated_splits(
    source: str, rows: Sequence[Row], whole: Split, choices: Choices
) -> tuple[dict[str, Split], list[str]]:
    """Return the splits of a set of which each row states one, else one that is held out of it.

    whole: the images of ``rows``. Returns lines for the user as well.
    """
    splits = [row.split.lower() for row in rows]
    train = [number for number, split in enumerate(splits) if split in ("", "train")]
    val = [number for number, split in enumerate(splits) if split not in ("", "train")]
    if not val:
        return hold_out(_part(whole, train, splits[0]), choices)
    refuse_share(f"{source} has a held-out part of its own", choices)
    parts = {"train": _part(whole, train, "train"), "val": _part(whole, val, splits[val[0]])}
    lacking = set(parts["val"].labels) - set(parts["train"].labels)
    if lacking:
        names = sorted({rows[number].label for number in val if whole.labels[number] in lacking})
        raise DataError(
            f"{source} has {len(names):,} labels in its held-out part that no training image has "
            f"({few(names)}): features cannot be judged on them"
        )
    return parts, []


def _part(whole: Split, rows: Sequence[int], stated: str) -> Split:
    """Return the images of a split, whose folder is the one that is called so, if all lie in it."""
    part = whole.take(rows)
    tops = {name.partition("/")[0] if "/" in name else "" for name in part.names}
    alone = len(tops) == 1 and bool(stated) and min(tops).lower() == stated
    return replace(part, folder=min(tops)) if alone else part
