"""Parquet files, and data sets that Hugging Face's `datasets` saved on disk (Arrow files)."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harl_fast import pool
from harl_fast.errors import DataError, one_line, shown
from harl_fast.files import Progress, open_regular
from harl_fast.textfile import read_json
from preprocess.images.listing import Listing, is_aside, list_files
from preprocess.images.members import Members
from preprocess.sources.base import NO_LABELS, WITHOUT_COLUMN, Choices, Rejected, Source
from preprocess.sources.cells import Cell, Column, arrow_table, is_arrow, leaf
from preprocess.sources.samples import (
    check_whole,
    label_text,
    sample_name,
    sample_source,
    split_of,
)

IMAGE_NAMES = ("image", "img", "jpg", "png", "jpeg", "webp", "image_bytes", "bytes")
LABEL_NAMES = ("label", "labels", "class", "cls", "category")
"""Names by which columns are taken for images and labels, in capitals or small letters, where the
file does not say itself."""
_OF_WORKERS = ("pyarrow.parquet", "pyarrow.compute")
"""What `cells` imports: 0.2 s in each worker, unless the process that they are forked from has."""
_OF_BROKEN_TABLES = (OSError, KeyError, ValueError)
"""What pyarrow raises besides its own errors, KeyError for a file that lacks a column."""
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
"""What `datasets` writes beside its Arrow files, and above those of several splits."""
_LISTED_BYTES = 1 << 26
"""Largest list of Arrow files; a terabyte in the usual pieces has 150 kB."""


class _Cell(NamedTuple):
    """One row: a `samples.Sample`."""

    name: str
    label: str
    split: str
    path: Path
    place: tuple[int, int, int, int]
    """Number of the file, row group, row in it, mean bytes."""

    @property
    def where(self) -> str:
        return f"{self.path.name}: row {self.place[2]} of group {self.place[1]}"


def tables_at(path: Path) -> list[tuple[Path, str]]:
    """Return the files that a path means, with the split of each: Parquet, or else Arrow files."""
    if (path / _SPLITS).is_file():
        names = _texts(path / _SPLITS, "splits")
        splits = {name: split_of(path / name, path) or name for name in names}
        return [(file, splits[name]) for name in names for file in _saved(path / name)]
    if (path / _STATE).is_file():
        return [(file, "") for file in _saved(path)]
    if path.is_dir():
        found = sorted(path / name for name in list_files(path, []) if _is_parquet(name))
        return [(file, split_of(file, path)) for file in found]
    return [(path, split_of(path, path.parent))] if _is_parquet(path.name) else []


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _unread(folder: Path, tables: Iterable[Path], passed_over: list[str]) -> list[Rejected]:
    """Return the files of a folder that are no tables, nor what `datasets` writes beside its own.

    Hidden and system files are added to ``passed_over``.
    """
    read = {file.relative_to(folder).as_posix() for file in tables}
    others = [name for name in list_files(folder, passed_over) if name not in read]
    return [
        Rejected(name, "no table of this set")
        for name in sorted(others)
        if name.rpartition("/")[2] not in (_STATE, _SPLITS, _INFO)
    ]


def _saved(folder: Path) -> list[Path]:
    files = _texts(folder / _STATE, "_data_files")
    return [folder / file for file in files]


def _texts(path: Path, key: str) -> list[str]:
    """Return the texts of a list in a JSON file, or those under ``filename`` in it."""
    values = read_json(path, error=DataError, most_bytes=_LISTED_BYTES).get(key)
    items = values if isinstance(values, list) else [None]
    found = [item.get("filename") if isinstance(item, dict) else item for item in items]
    texts = [text for text in found if isinstance(text, str) and text == Path(text).name]
    if len(texts) < len(found):
        raise DataError(f"{path} has no list of names under {key!r}: save the data set again")
    return texts


def fits_tables(path: Path) -> bool:
    """Return whether the path is a Parquet file, holds some, or is a data set on disk."""
    if not path.is_dir():
        return _is_parquet(path.name)
    # Three levels of a class folder would be all of its files.
    marks = (_SPLITS, _STATE, "*.parquet", "*/*.parquet", "*/train/*.parquet")
    found = (file.relative_to(path) for mark in marks for file in path.glob(mark))
    return any(not any(map(is_aside, file.parts)) for file in found)


def table_source(path: Path, choices: Choices) -> Source:
    """Return the images of a column of bytes, with the labels of another one.

    Raises `DataError` for files that are missing or broken, and for a lack of such columns.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise DataError(
            "Parquet and Arrow files are read with the package pyarrow, which is not installed: "
            "pip install pyarrow"
        ) from error
    if _OF_WORKERS[0] not in pool.PRELOAD:
        pool.PRELOAD += _OF_WORKERS
    tables = tables_at(path)
    if not tables:
        raise DataError(f"{path} holds no .parquet; give a file, or a folder with some")
    cells, broken, columns = list[_Cell](), list[Rejected](), None
    with Progress(len(tables), label="reading the tables' labels", unit="files") as progress:
        for number, (file, split) in enumerate(tables):
            try:
                table = _Table(file)
                columns = columns or _columns(file, table, choices)
                cells += _cells(table, number, split, _named_alike(table, columns))
            except (pa.ArrowException, *_OF_BROKEN_TABLES) as error:
                broken.append(Rejected(file.name, str(error)[:200]))
            progress.advance()
    passed_over = list[str]()
    unread = _unread(path, (file for file, _ in tables), passed_over) if path.is_dir() else []
    notes = check_whole(path, broken, len(tables), choices)
    notes += Listing(passed_over=passed_over).notes(one_line(path.name))
    if not cells or columns is None:
        raise DataError(f"{path} holds no row")
    if columns.others:
        notes.append(
            f"images are those of the column {one_line('.'.join(columns.image))}, not of "
            f"{', '.join(map(one_line, columns.others[:5]))}; --image-column says otherwise"
        )
    places = [(file, columns.image) for file, _ in tables]
    held = functools.partial(Members, Cell, places, forward=True)
    rejected = [("", one) for one in (*unread, *broken)]
    return sample_source(path, cells, held, choices, rejected=rejected, notes=notes)


class _Columns(NamedTuple):
    """Which columns there are, and what the label's numbers mean."""

    image: Column
    path: Column
    """Of the images' own file names; empty if there is none."""
    label: str
    """Empty if the images have no labels."""
    classes: list[str]
    """Empty if the labels are the classes' names themselves."""
    numbers: bool
    """The labels are whole numbers, with or without names."""
    others: list[str]
    """Further columns that could hold images."""


class _Table:
    """A Parquet or Arrow file, of which only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        open_regular(path).close()  # says what else stands there, such as a pointer of Git LFS
        self.path = path
        self._file: Any = None if is_arrow(path) else pq.ParquetFile(path)
        self.schema = arrow_table(path).schema if self._file is None else self._file.schema_arrow

    def features(self) -> dict[str, Any]:
        """Return what Hugging Face's metadata say of the columns."""
        try:
            found = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
        except (KeyError, ValueError, TypeError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def values(self, column: Column) -> list[Any]:
        """Return a column's values; not for images."""
        if self._file is None:
            chunks = _sound_chunks(self.path, column[0])
        else:
            chunks = self._file.read(columns=[".".join(column)]).column(column[0]).chunks
        return [value for chunk in chunks for value in leaf(chunk, column).to_pylist()]

    def groups(self, column: Column) -> Iterator[tuple[int, int]]:
        """Yield rows and bytes of a column in each group."""
        if self._file is None:
            for chunk in _sound_chunks(self.path, column[0]):
                yield len(chunk), chunk.nbytes
            return
        meta = self._file.metadata
        paths = [meta.schema.column(number).path for number in range(meta.num_columns)]
        place = paths.index(".".join(column))
        for number in range(meta.num_row_groups):
            group = meta.row_group(number)
            yield group.num_rows, group.column(place).total_compressed_size


def _sound_chunks(path: Path, column: str) -> list[Any]:
    """Return a column's batches in an Arrow file; raises what `table_source` takes for damage."""
    chunks: list[Any] = arrow_table(path).column(column).chunks
    for chunk in chunks:
        chunk.validate(full=True)  # or offsets beyond the file would be followed
    return chunks


def _cells(table: _Table, number: int, split: str, columns: _Columns) -> Iterator[_Cell]:
    labels = table.values((columns.label,)) if columns.label else None
    paths = table.values(columns.path) if columns.path else None
    row = 0
    for group, (rows, size) in enumerate(table.groups(columns.image)):
        for place in range(rows):
            label = "" if labels is None else _label(labels[row], columns.classes, table.path, row)
            own = paths[row] if paths else None
            name = sample_name(split, label, _inner(own) or f"{table.path.stem}-{row:06d}")
            yield _Cell(name, label, split, table.path, (number, group, place, size // rows))
            row += 1


def _inner(path: str | None) -> str:
    """Return an image's own path, without folders if it is no relative one."""
    parts = (path or "").split("/")
    return parts[-1] if ".." in parts or "" in parts else "/".join(parts)


def _label(value: Any, classes: list[str], path: Path, row: int) -> str:
    try:
        text = label_text(value)
        return classes[int(text)] if classes and text else text
    except IndexError:
        problem = f"{text}, and its metadata name {len(classes):,} classes, from 0"
    except ValueError as error:
        problem = str(error)
    raise DataError(f"{path}: the label of row {row} is {problem}. {WITHOUT_COLUMN}")


def _columns(file: Path, table: _Table, choices: Choices) -> _Columns:
    """Return which columns hold images and labels, by the command line, metadata and names."""
    features, schema = table.features(), table.schema
    kinds = {name: one.get("_type") for name, one in features.items() if isinstance(one, dict)}
    there = ", ".join(f"{one_line(field.name)} ({field.type})" for field in schema)[:500]
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise DataError(f"{file} has two columns named {one_line(twice[0])}: rename one of them")
    images = {field.name: inner for field in schema if (inner := _bytes_column(field))}
    marked = [name for name in images if kinds.get(name) == "Image" or images[name][1:]]
    named = _named(IMAGE_NAMES, images)[:1]
    found = [choices.image_column] if choices.image_column else marked or named or list(images)
    if len(found) > 1:
        raise DataError(
            f"{file} has {len(found)} columns of images ({', '.join(map(one_line, found))}): "
            f"choose by --image-column"
        )
    if not found or found[0] not in images:
        what = f"column {found[0]} of images" if found else "column of images"
        remedy = "Choose by --image-column" if images else "Write the images into one"
        raise DataError(
            f"{file} has no {what}, which are bytes of image files; it has {there}. {remedy}"
        )
    (image,) = found
    struct = images[image][1:] and "path" in [one.name for one in schema.field(image).type]
    label = _label_column(file, schema, kinds, choices, there)
    others = [name for name in images if name != image]
    path = (image, "path") if struct else ()
    return _Columns(images[image], path, label, *_meaning(table, label), others)


def _meaning(table: _Table, label: str) -> tuple[list[str], bool]:
    """Return `_Columns.classes` and `_Columns.numbers` of a column of labels in one file."""
    import pyarrow as pa

    if not label:
        return [], False
    about, kind = table.features().get(label), table.schema.field(label).type
    classes: Any = []
    if isinstance(about, dict) and about.get("_type") == "ClassLabel":
        classes = about["names"]
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise DataError(
            f"{table.path}: the metadata of the column {label} name no classes. {WITHOUT_COLUMN}"
        )
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise DataError(
            f"{table.path}: the metadata of the column {label} name two classes {shown(twice[0])}, "
            f"which would be one: rename one of them. {WITHOUT_COLUMN}"
        )
    return classes, bool(pa.types.is_integer(getattr(kind, "value_type", kind)))


def _named_alike(table: _Table, first: _Columns) -> _Columns:
    """Return the first file's columns with what the labels of another file mean.

    Numbers that it does not name mean what they do in the first file. Raises `DataError` if only
    one of both has names.
    """
    import pyarrow as pa

    if not first.label or pa.types.is_null(table.schema.field(first.label).type):
        return first
    classes, numbers = _meaning(table, first.label)
    if numbers and not classes:
        classes = first.classes
    unnamed = numbers and not classes
    if unnamed != (first.numbers and not first.classes):
        raise DataError(
            f"{table.path}: its labels are {'numbers' if unnamed else 'names'}, and those of files "
            f"before it {'names' if unnamed else 'numbers that nothing names'}: write all alike, "
            f"or {WITHOUT_COLUMN}"
        )
    return first._replace(classes=classes)


def _bytes_column(field: Any) -> Column:
    """Return a column's bytes, or () if it has none."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        types = pa.types
        tests = types.is_binary, types.is_large_binary, types.is_binary_view
        return any(test(kind) for test in tests)

    if is_bytes(field.type):
        return (field.name,)
    inner = (
        [one.name for one in field.type if is_bytes(one.type)]
        if pa.types.is_struct(field.type)
        else []
    )
    return (field.name, "bytes") if "bytes" in inner else ()


def _named(usual: Iterable[str], columns: Iterable[str]) -> list[str]:
    """Return the columns with usual names, in the order of these, whatever the letters' case."""
    return [column for name in usual for column in columns if column.lower() == name]


def _label_column(
    file: Path, schema: Any, kinds: dict[str, Any], choices: Choices, there: str
) -> str:
    import pyarrow as pa

    def is_label(name: str) -> bool:
        kind = schema.field(name).type
        texts = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
        return any(test(kind) for test in (pa.types.is_integer, *texts, pa.types.is_dictionary))

    if choices.label_column == NO_LABELS:
        return ""
    if choices.label_column:
        if choices.label_column not in schema.names or not is_label(choices.label_column):
            raise DataError(
                f"{file} has no column {choices.label_column} of whole numbers or texts; it has "
                f"{there}. Give --label-column one of them, or {NO_LABELS}"
            )
        return choices.label_column
    marked = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    named = _named(LABEL_NAMES, schema.names)
    if named and not (marked or is_label(named[0])):
        raise DataError(
            f"{file}: the column {named[0]} has {schema.field(named[0]).type} values, and labels "
            f"are whole numbers or texts. Convert it, or give another column as --label-column; "
            f"{WITHOUT_COLUMN}"
        )
    named = [name for name in named if is_label(name)]
    found = [name for name in named if name in marked][:1] or marked or named[:1]
    if len(found) > 1:
        raise DataError(
            f"{file} has {len(found)} columns of labels ({', '.join(map(one_line, found))}): "
            f"choose by --label-column"
        )
    return found[0] if found else ""
