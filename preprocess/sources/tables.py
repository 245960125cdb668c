"""Lists of images: CSV, TSV, JSON lines, or a text file with a path per line."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from harl_fast.errors import DataError, few, one_line, shown
from harl_fast.files import UnusualFileError, is_url, open_regular
from harl_fast.textfile import parse_json
from preprocess.sources.base import Choices, Source, Split
from preprocess.sources.folders import link_notes
from preprocess.sources.layout import ONE_FORM, other_form
from preprocess.sources.stated import stated_classes, stated_splits, used_rows

COLUMNS = ("path", "label", "split", "mask")
"""What a list may say of an image; the rest of its columns is not read."""


class _Row(NamedTuple):
    """One image, as the list has it; empty texts for what it does not say."""

    line: int
    path: str
    label: str = ""
    split: str = ""
    mask: str = ""

    @property
    def where(self) -> str:
        return f"line {self.line}"


def _csv_rows(stream: TextIO, delimiter: str) -> Iterator[_Row]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    lines = _well_quoted(reader)
    header = [name.strip().lower() for name in next(lines, [])]
    if len(header) == 1 and ";" in header[0]:
        raise ValueError("its columns are parted by semicolons: part them by commas, or by tabs")
    if "path" not in header:
        listed = ", ".join(one_line(name) for name in header[:20]) or "none"
        raise ValueError(f"no column named path, but these: {listed}. Name it in the first line")
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise ValueError(f"two columns named {twice[0]}")
    places = {name: header.index(name) for name in COLUMNS if name in header}
    for values in lines:
        if not values:
            continue
        if len(values) != len(header):
            raise ValueError(
                f"{len(values)} values in line {reader.line_num}, but {len(header)} columns; put "
                f"quotes around values with a {'tab' if delimiter == TAB else delimiter} inside"
            )
        yield _Row(reader.line_num, **{name: values[at].strip() for name, at in places.items()})


def _well_quoted(reader: Any) -> Iterator[list[str]]:
    """Yield a csv.reader's rows; ValueError names the line that it refuses."""
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num}: {error}; quotes go around a whole value, and those within it "
            f'are doubled: "a ""b"" c"'
        ) from error


def _json_rows(stream: TextIO) -> Iterator[_Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        row = parse_json(line, where=f"line {number}", error=DataError)
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
    rows, notes = used_rows(str(path), _read(path))
    base = os.path.abspath(path.parent)
    files = [os.path.normpath(os.path.join(base, row.path)) for row in rows]
    masks = [Path(base, row.mask) if row.mask else None for row in rows]
    _check_files(path, rows, files, masks)
    inside = all(file.startswith(f"{base}{os.sep}") for file in files)
    root = base if inside else os.path.commonpath([os.path.dirname(file) for file in files])
    without = "Leave the column label out to read the images without labels"
    classes, labels = stated_classes(str(path), rows, least=choices.least_classes, without=without)
    whole = Split(
        names=[file.removeprefix(root).lstrip(os.sep) for file in files],
        labels=labels,
        root=Path(root),
        mask_files=masks if any(masks) else None,
    )
    splits, said = stated_splits(str(path), rows, whole, choices)
    source = Source(one_line(path.resolve().name), classes, splits, [*notes, *said])
    return replace(source, notes=[*source.notes, *link_notes(source)])


def _read(path: Path) -> list[_Row]:
    if path.suffix.lower() not in _KINDS:
        raise DataError(f"{path} is no list by its name; give it one of {' '.join(_KINDS)}")
    csv.field_size_limit(1 << 20)
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as stream:
            rows = list(_KINDS[path.suffix.lower()](stream))
    except UnusualFileError as error:
        raise DataError(f"{path} is {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except (ValueError, DataError) as error:
        raise DataError(f"{path} cannot be read as a list of images: {error}") from error
    if not rows:
        raise DataError(f"{path} names no image; give a path in every line, as docs/data.md shows")
    if empty := [row.line for row in rows if not row.path]:
        raise DataError(f"{path} has {len(empty):,} rows without a path (first: line {empty[0]})")
    return rows


def _remedy(path: Path, rows: list[_Row]) -> str:
    """Return what to do about paths that lead to no file, by what would lead to one."""
    for row in rows:
        more = re.fullmatch(r"(.+?)[\s,;]+([^\s,;]+)", row.path)
        if more and os.path.isfile(path.parent / more[1]):
            return (
                f"a line holds a path alone, and {shown(more[2])} behind it (line {row.line}) is "
                f"none of its: for labels write a CSV with the columns path and label"
            )
        if twin := other_form(path.parent, row.path):
            return (
                f"the folder has {twin!a}, and line {row.line} {row.path!a}: two Unicode forms of "
                f"the same letters. {ONE_FORM}"
            )
        if "\\" in row.path and os.path.isfile(path.parent / row.path.replace("\\", "/")):
            return f"part folders by /, not by \\ (line {row.line})"
    return "paths are relative to the list's folder"


def _check_files(path: Path, rows: list[_Row], files: list[str], masks: list[Path | None]) -> None:
    if far := [row for row in rows if is_url(row.path) or is_url(row.mask)]:
        raise DataError(
            f"{path} names {len(far):,} URLs (first: line {far[0].line}): download the files, and "
            f"list where they lie"
        )
    missing = [
        f"line {row.line}: {one_line(str(place))}"
        for row, *places in zip(rows, files, masks, strict=True)
        for place in places
        if place is not None and not os.path.isfile(place)
    ]
    if missing:
        raise DataError(
            f"{path} names {len(missing):,} files that are not there ({few(missing)}); "
            f"{_remedy(path, rows)}"
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
