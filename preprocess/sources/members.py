"""Images that are no files of their own, such as members of an archive."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

from preprocess.arrays import Pixels


class Member(Protocol):
    """Where one image's bytes lie; goes to the workers, hence small and picklable."""

    @property
    def name(self) -> str:
        """What a message calls it."""

    def open(self) -> BinaryIO:
        """Return the image file's bytes as a seekable stream, which the caller closes."""


ImageRef = Path | Pixels | Member
"""One image: its file, its (H, W, 3) uint8 pixels, or where its bytes lie."""
