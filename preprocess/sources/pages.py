"""The pages of TIFFs as images of their own."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from preprocess.images.decode import open_file, open_image
from preprocess.images.listing import TIFF_STARTS
from preprocess.images.members import FileRef, Members, Page
from preprocess.images.reading import UnusableImageError
from preprocess.images.tiff import pages
from preprocess.sources.base import Source, Split

PAGE = re.compile(r"#[0-9]+\Z")
"""How the name of a page ends after that of its file."""


def with_pages(source: Source) -> Source:
    """Return a source in which each page of a TIFF is an image ``name#1``, ``name#2`` and so on.

    They have their file's label and place in the order. Names of files with one page stay.
    """
    return replace(source, splits={name: _expand(one) for name, one in source.splits.items()})


def _expand(split: Split) -> Split:
    if split.pixels is not None:
        return split
    files = [split.file(row) for row in range(len(split.names))]
    found = [_pages_of(file) for file in files]
    rows = [(row, page) for row, numbers in enumerate(found) for page in numbers]
    if len(rows) == len(files):
        return split
    several = [len(numbers) > 1 for numbers in found]
    masks = split.mask_files
    return Split(
        names=[f"{split.names[r]}#{p + 1}" if several[r] else split.names[r] for r, p in rows],
        labels=[split.labels[row] for row, _ in rows],
        folder=split.folder,
        members=Members(Page, [(file,) for file in files], np.array(rows, np.int64)),
        mask_files=None if masks is None else [masks[row] for row, _ in rows],
        rejected=split.rejected,
    )


def _pages_of(file: FileRef) -> list[int]:
    """Return the pages of a TIFF; the first alone of other files, and of what does not read."""
    try:
        with open_file(file) as stream:
            if stream.read(4) not in TIFF_STARTS:
                return [0]
        with open_image(file) as image:
            return list(pages(image))
    except (UnusableImageError, OSError):  # said when it is converted
        return [0]
