"""Where images come from, as one kind of list: the table of sources, and torchvision's sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harl_fast.errors import DataError, few, one_line
from preprocess.sources import archives, folders, parquet, tables, tarshards
from preprocess.sources.base import Choices, Reader, Rejected, Source, Split
from preprocess.sources.folders import folder_source
from preprocess.sources.torchvision import DATASETS, torchvision_source

SOURCES: dict[str, Reader] = {
    "folders": Reader(
        "class folders in train/ and val/ or test/", folders.fits_folders, folders.folder_source
    ),
    "classes": Reader("a folder per class", folders.fits_classes, folders.class_folders),
    "images": Reader("images in any folders", folders.fits_images, folders.plain_folder),
    "list": Reader(
        "a list of images (CSV, TSV, JSON lines or paths)", tables.fits_list, tables.list_source
    ),
    "tar": Reader("tar shards of WebDataset", tarshards.fits_shards, tarshards.shard_source),
    "parquet": Reader(
        "Parquet files, or a data set saved by Hugging Face",
        parquet.fits_tables,
        parquet.table_source,
    ),
    "archive": Reader("a .zip or .tar of folders", archives.fits_archive, archives.archive_source),
}
"""The kinds of sources by the names that ``--source`` takes."""
_MISSING = ("nan", "null", "none", "na", "n/a", "<na>", "nat")
"""What programs write where a value is missing, in lower case."""

__all__ = [
    "DATASETS",
    "SOURCES",
    "Choices",
    "Reader",
    "Rejected",
    "Source",
    "Split",
    "folder_source",
    "read_source",
    "torchvision_source",
]


def read_source(path: Path, choices: Choices) -> Source:
    """Return the images at ``path``; says what kind of source it takes them for, then how many.

    An archive may be unpacked in between, see `Choices.scratch`.

    Raises `DataError` if no kind fits, if more than one does, or for what cannot be read.
    """
    shown = one_line(str(path))
    kind = choices.source or _guess(path)
    _check_columns(path, kind, choices)
    hint = "" if choices.source else "; --source says otherwise"
    print(f"looking for images in {shown}, as {SOURCES[kind].about}{hint}", flush=True)
    source = SOURCES[kind].read(path, choices)
    counts = " and ".join(f"{len(part.names):,} {name}" for name, part in source.splits.items())
    classes = f" of {len(source.classes):,} classes" if source.classes else ", no labels"
    print(f"read as {SOURCES[kind].about}: {counts} images{classes}{hint}", flush=True)
    for note in (*source.notes, *doubtful_classes(source.classes)):
        print(f"note: {note}", flush=True)
    return source


def doubtful_classes(names: Sequence[str]) -> Iterator[str]:
    """Yield a line on classes that may be one, or none: by letter case, and missing values."""
    first: dict[str, str] = {}
    twins = [name for name in names if first.setdefault(name.lower(), name) != name]
    if twins:
        pairs = few([f"{first[name.lower()]} and {name}" for name in twins])
        yield f"classes that differ by letter case only are read as two each: {pairs}"
    if missing := [name for name in names if name.lower() in _MISSING]:
        yield (
            f"read as classes like any other: {few(missing)}. If images without a label are so "
            f"called, leave them out"
        )


def _check_columns(path: Path, kind: str, choices: Choices) -> None:
    """Raise DataError for columns of a source that has none."""
    columns = {"--image-column": choices.image_column, "--label-column": choices.label_column}
    for option, name in columns.items():
        kinds = ("parquet",) if option == "--image-column" else ("parquet", "tar")
        if name is not None and kind not in kinds:
            raise DataError(
                f"{option} {name} is for --source {' or '.join(kinds)}, {path} is read as "
                f"{SOURCES[kind].about}: leave it out (--source images takes no labels)"
            )


def _guess(path: Path) -> str:
    from harl_fast.data.container.manifest import containers_in  # takes seconds

    fitting = [name for name, reader in SOURCES.items() if reader.fits(path)]
    if {"classes", "images"}.issuperset(fitting) and containers_in(path, "train"):
        raise DataError(
            f"{path} holds containers, which `make beton` wrote: give the images that they were "
            f"made of; --source images reads the image files beside them"
        )
    if not fitting and not path.exists():
        raise DataError(f"{path} does not exist; give the folder or file that holds the images")
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{path} can be read as {' or as '.join(SOURCES[name].about for name in fitting)}: "
            f"choose by --source {' or --source '.join(fitting)}"
        )
    if inner := folders.nested(path):
        raise DataError(
            f"{path} has no train/ folder, but {inner} has: give that one; --source images reads "
            f"all of {path} without labels"
        )
    kinds = "; ".join(f"{name}: {reader.about}" for name, reader in SOURCES.items())
    raise DataError(f"{path} holds nothing that can be read as images. What can be: {kinds}")
