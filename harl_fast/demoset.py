"""How the generated demo set and its samples are named: for what draws it, and what reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harl_fast.errors import DataError, shown

RECIPE = 2
"""Raise it when the same settings give other pixels: sets made before are then made anew."""
IMAGES, SIDE_PX = 4000, 96
"""Of the default set."""
_KIND = "generated, "
_NAME = re.compile(r"(?:.*/)?[a-z]+/([a-z]+)-[0-9]+(?:\.[A-Za-z]+)?")


def set_name(images: int, side_px: int, *, seed: int) -> str:
    """Return what manifests call the source of such a set; other pixels have another name."""
    return f"{_KIND}recipe {RECIPE}, seed {seed}, {images} images of {side_px} px"


def is_demo_set(source: str) -> bool:
    """Return whether a manifest's source is a demo set, of this recipe or an older one."""
    return source.startswith(_KIND)


def sample_name(kind: str, scene: str, index: int) -> str:
    """Return the name of a split's sample, without the file's suffix: ``fish/forest-000012``."""
    return f"{kind}/{scene}-{index:06d}"


def scenes_of(names: Iterable[str]) -> list[str]:
    """Return the scene of each sample. names: their paths, as in a container's file of names.

    Raises DataError for a name that `sample_name` does not give.
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
