"""How the generated demo set and its samples are named: for what draws it, and what reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from harl_fast.errors import DataError, one_line, shown
from harl_fast.textfile import read_json

RECIPE = 2
"""Raise it when the same settings give other pixels: sets made before are then made anew."""
IMAGES, SIDE_PX = 4000, 96
"""Of the default set."""
SPLITS = ("train", "val")
"""What the containers of each stream of draws are called, as those of any set."""
_KIND = "generated, "
_MOST_BYTES = 1 << 26
"""Of a manifest, which may be of any other set."""
_NAME = re.compile(r"(?:.*/)?[a-z]+/([a-z]+)-[0-9]+(?:\.[A-Za-z]+)?")


def set_name(images: int, side_px: int, *, seed: int) -> str:
    """Return what manifests call the source of such a set; other pixels have another name."""
    return f"{_KIND}recipe {RECIPE}, seed {seed}, {images} images of {side_px} px"


def holds(folder: Path, wanted: str) -> bool:
    """Return whether a folder has the containers of a set, by its `set_name`.

    Of another demo set, such as an older recipe's, it says so: it may be drawn anew. Raises
    DataError for containers of any other images, which must not be replaced.
    """
    manifests = [folder / f"{split}.json" for split in SPLITS]
    there = [manifest for manifest in manifests if manifest.exists()]
    try:
        trees = [read_json(each, error=DataError, most_bytes=_MOST_BYTES) for each in there]
    except DataError as error:
        raise DataError(
            f"{error}. If {folder} holds a demo set, delete it, and it is made anew; otherwise "
            f"give another folder"
        ) from error
    found = {str(tree.get("source")) for tree in trees}
    for source in found - {wanted}:
        check_kind(folder, source)
        print(one_line(f"{folder} holds another demo set ({source}): it is drawn anew ({wanted})"))
    return found == {wanted} and there == manifests


def check_kind(folder: Path, source: str) -> None:
    """Raise DataError unless the source of a folder's containers is a demo set, of any recipe."""
    if not source.startswith(_KIND):
        raise DataError(f"{folder} holds {shown(source)}, no demo set: give another folder")


def name_of(kind: str, scene: str, index: int) -> str:
    """Return the name of a split's sample, without the file's suffix: ``fish/forest-000012``."""
    return f"{kind}/{scene}-{index:06d}"


def scenes_of(names: Iterable[str]) -> list[str]:
    """Return the scene of each sample. names: their paths, as in a container's file of names.

    Raises DataError for a name that `name_of` does not give.
    """
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"{shown(name)} says no scene, as fish/forest-000012 does: give containers of the "
                f"demo set, which `make demo` makes"
            )
        found.append(match[1])
    return found
