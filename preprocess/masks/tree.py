"""A parallel tree of mask files, as HARL's authors publish them: same folders, stem + ``.png``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harl_fast.errors import DataError


@dataclass(frozen=True)
class MaskTree:
    """Where one split's mask files lie."""

    folder: Path
    """Stands for the split's own folder: holds ``<class>/<stem>.png``."""

    def path(self, name: str) -> Path:
        """Return the mask file of an image name such as ``train/<class>/<stem>.jpg``."""
        inner = PurePosixPath(*PurePosixPath(name).parts[1:])
        return self.folder / inner.with_suffix(".png")


def open_tree(tree: Path, first_name: str, classes: list[str]) -> MaskTree | None:
    """Return the masks of the split whose images are named like ``first_name``, or None.

    ``tree`` holds ``train/<class>/...``, or, as the published archives do, the classes of the
    training images directly. A tree without the training images' classes is an error.
    """
    if not tree.is_dir():
        raise DataError(f"the mask tree {tree} is no folder; expected {tree}/train/<class>/*.png")
    split = PurePosixPath(first_name).parts[0]
    inside = tree / split
    if inside.is_dir():
        return MaskTree(inside)
    if split != "train":
        return None
    if any((tree / name).is_dir() for name in classes):
        return MaskTree(tree)
    raise DataError(
        f"the mask tree {tree} has neither train/ nor class folders of the images "
        f"({', '.join(classes[:3])}, ...); expected {tree}/train/<class>/*.png"
    )
