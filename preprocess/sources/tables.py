"""Lists of images: CSV, TSV, JSON lines, or a text file with a path per line."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TextIO

from harl_fast.data.container.manifest import UNLABELLED
from harl_fast.errors import DataError, one_line, shown
from preprocess.sources.base import Choices, Source, Split
from preprocess.sources.folders import link_notes
from preprocess.sources.heldout import hold_out
from preprocess.sources.layout import HELD_OUT, two_forms

COLUMNS = ("path", "label", "split", "mask")
"""What a list may say of an image; the rest of its columns is not read."""
_SHOWN = 5


class _Row(NamedTuple):
    """One image, as the list has it; empty texts for what it does not say."""

    line: int
    path: str
    label: str = ""
    split: str = ""
    mask: str = ""


def _csv_rows(stream: TextIO, delimiter: str) -> Iterator[_Row]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    if "path" not in header:
        listed = ", ".join(one_line(name) for name in header[:20]) or "none"
        raise ValueError(f"no column named path, but these: {listed}. Name it in the first line")
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise ValueError(f"two columns named {twice[0]}")
    places = {name: header.index(name) for name in COLUMNS if name in header}
    for values in reader:
        if not values:
            continue
        if len(values) != len(header):
            raise ValueError(
                f"{len(values)} values in line {reader.line_num}, but {len(header)} columns; put "
                f"quotes around values with a {'tab' if delimiter == TAB else delimiter} inside"
            )
        yield _Row(reader.line_num, **{name: values[at].strip() for name, at in places.items()})


def _json_rows(stream: TextIO) -> Iterator[_Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f'line {number} is no JSON object such as {{"path": "a/1.jpg"}}')
        texts = {name: _text(row[name], name, number) for name in COLUMNS if name in row}
        if "path" not in texts:
            listed = ", ".join(one_line(str(name)) for name in list(row)[:20]) or "none"
            raise ValueError(f"no key named path in line {number}, but these: {listed}")
        yield _Row(number, **texts)


def _text(value: object, name: str, number: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"{name} is {shown(value)} in line {number}; give a text or a whole number"
        )
    return str(value).strip()


def _text_rows(stream: TextIO) -> Iterator[_Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _Row(number, line.strip())


TAB = "\t"
_KINDS: dict[str, Callable[[TextIO], Iterable[_Row]]] = {
    ".csv": lambda stream: _csv_rows(stream, ","),
    ".tsv": lambda stream: _csv_rows(stream, TAB),
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".txt": _text_rows,
}


def fits_list(path: Path) -> bool:
    """Return whether the path is a file with a list's suffix."""
    return path.is_file() and path.suffix.lower() in _KINDS


def list_source(path: Path, choices: Choices) -> Source:
    """Return the images that a list names, by paths relative to its folder or absolute ones.

    Raises `DataError` for a list that cannot be read, that names files that are not there or files
    twice, or that has labels or splits in some rows only.
    """
    rows, notes = _used(path, _read(path))
    base = os.path.abspath(path.parent)
    files = [os.path.normpath(os.path.join(base, row.path)) for row in rows]
    masks = [Path(base, row.mask) if row.mask else None for row in rows]
    _check_files(path, rows, files, masks)
    inside = all(file.startswith(f"{base}{os.sep}") for file in files)
    root = base if inside else os.path.commonpath([os.path.dirname(file) for file in files])
    classes = _classes(path, rows)
    numbers = {name: number for number, name in enumerate(classes)}
    whole = Split(
        names=[file.removeprefix(root).lstrip(os.sep) for file in files],
        labels=[numbers[row.label] if classes else UNLABELLED for row in rows],
        root=Path(root),
        mask_files=masks if any(masks) else None,
    )
    splits, said = _splits(path, rows, whole, choices)
    source = Source(one_line(path.resolve().name), classes, splits, [*notes, *said])
    return replace(source, notes=[*source.notes, *link_notes(source)])


def _read(path: Path) -> list[_Row]:
    csv.field_size_limit(1 << 20)
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = list(_KINDS[path.suffix.lower()](stream))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a list of images: {error}") from error
    if not rows:
        raise DataError(f"{path} names no image; give a path in every line, as docs/data.md shows")
    if empty := [row.line for row in rows if not row.path]:
        raise DataError(f"{path} has {len(empty):,} rows without a path (first: line {empty[0]})")
    return rows


def _used(path: Path, rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """Return the rows of the training and of the held-out part, and what is said of others."""
    rows = [row._replace(split=row.split.lower()) for row in rows]
    found = Counter(row.split for row in rows)
    known = ("train", *HELD_OUT)
    if unknown := [row for row in rows if row.split not in ("", *known)]:
        raise DataError(
            f"{path} has {len(unknown):,} rows of other splits than {', '.join(known)} (first: "
            f"{shown(unknown[0].split)} in line {unknown[0].line})"
        )
    _check_all_or_none(path, rows, "split")
    if found[""]:
        return rows, []
    if not found["train"]:
        raise DataError(f"{path} has no row of the split train: name one so")
    held_out, *others = [name for name in HELD_OUT if found[name]] or [""]
    notes = [f"{found[name]:,} rows of the split {name} are not used: val is" for name in others]
    return [row for row in rows if row.split in ("train", held_out)], notes


def _check_all_or_none(path: Path, rows: list[_Row], column: str) -> None:
    without = [row for row in rows if not getattr(row, column)]
    if 0 < len(without) < len(rows):
        raise DataError(
            f"{path} has a {column} in {len(rows) - len(without):,} of {len(rows):,} rows only "
            f"(first without: line {without[0].line}): fill the column, or leave it out"
        )


def _check_files(path: Path, rows: list[_Row], files: list[str], masks: list[Path | None]) -> None:
    missing = [
        f"line {row.line}: {one_line(str(place))}"
        for row, *places in zip(rows, files, masks, strict=True)
        for place in places
        if place is not None and not os.path.isfile(place)
    ]
    if missing:
        raise DataError(
            f"{path} names {len(missing):,} files that are not there "
            f"({', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}); paths are "
            f"relative to the list's folder"
        )
    first: dict[str, _Row] = {}
    twice = [
        (row, file)
        for row, file in zip(rows, files, strict=True)
        if first.setdefault(file, row) is not row
    ]
    if twice:
        row, file = twice[0]
        raise DataError(
            f"{path} names {len(twice):,} files again (first: {one_line(row.path)} in lines "
            f"{first[file].line} and {row.line}): leave one row per image"
        )


def _classes(path: Path, rows: list[_Row]) -> list[str]:
    """Return the labels that occur, numbers in their order; none if no row has one."""
    _check_all_or_none(path, rows, "label")
    names = sorted({row.label for row in rows} - {""})
    if names and all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    if len(names) == 1:
        raise DataError(
            f"{path} has only one label ({one_line(names[0])}); evaluation needs at least two. "
            f"Leave the column out to read the images without labels"
        )
    for name in names:
        if one_line(name) != name:
            raise DataError(f"{path} has a label that does not print ({one_line(name)}): rename it")
    if twins := two_forms(names):
        raise DataError(
            f"{path} has two labels that both read {twins[0]}: {twins[0]!a} and "
            f"{twins[1]!a}, two Unicode forms of the same letters. Use one form"
        )
    return names


def _splits(
    path: Path, rows: list[_Row], whole: Split, choices: Choices
) -> tuple[dict[str, Split], list[str]]:
    train = [number for number, row in enumerate(rows) if row.split in ("", "train")]
    val = [number for number, row in enumerate(rows) if row.split not in ("", "train")]
    if not val:
        return hold_out(whole, choices)
    if choices.val is not None:
        raise DataError(f"{path} has a held-out part of its own: leave --val out")
    splits = {"train": whole.take(train), "val": whole.take(val)}
    lacking = set(splits["val"].labels) - set(splits["train"].labels)
    if lacking:
        names = sorted({rows[number].label for number in val if whole.labels[number] in lacking})
        raise DataError(
            f"{path} has {len(names):,} labels in its held-out part that no training image has "
            f"({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}): features "
            f"cannot be judged on them"
        )
    return splits, []
