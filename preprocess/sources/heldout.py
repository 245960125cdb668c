"""The part of a training set that is held out, where a source brings none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from harl_fast.errors import DataError
from preprocess.sources.base import UNLABELLED, Choices, Split

VAL_SHARE = 0.05
"""Of the images with labels, unless the command line names another share."""


def hold_out(split: Split, choices: Choices) -> tuple[dict[str, Split], list[str]]:
    """Return "train" and, if anything is held out, "val"; and lines for the user.

    Of each class the images with the lowest hashes of seed and name are held out, at least one of
    two or more: files' order, place and number decide nothing, and images that are added later
    move others only at the edge of their class's share. Images without labels are one class, of
    which nothing is held out unless `Choices.val` says so.
    """
    labelled = bool(split.labels) and split.labels[0] != UNLABELLED
    share = choices.val
    if share is None:
        share = VAL_SHARE if labelled else 0.0
    if not share:
        if choices.seed:
            raise DataError(f"--val-seed {choices.seed}: nothing is held out; give --val as well")
        return {"train": split}, []
    held = _lowest(split, share, choices.seed)
    if not held.any():
        if choices.val is None:
            return {"train": split}, ["nothing is held out: no class has two images"]
        raise DataError(
            f"--val {share:g}: no class has two images, so nothing can be held out; give --val 0"
        )
    count = int(held.sum())
    parts = {
        "train": replace(split.take(np.flatnonzero(~held).tolist()), rejected=split.rejected),
        "val": split.take(np.flatnonzero(held).tolist()),
    }
    what = "images, of each class its share" if labelled else "images"
    return parts, [f"held out as val: {count:,} of {len(held):,} {what} ({share:.3g}); see --val"]


def refuse_share(why: str, choices: Choices) -> None:
    """Raise DataError if a share is to be held out of a source that has such a part itself."""
    if choices.val is not None or choices.seed:
        raise DataError(f"{why}: leave {'--val-seed' if choices.val is None else '--val'} out")


def _lowest(split: Split, share: float, seed: int) -> np.ndarray:
    """Return (N,) bool: which images are held out."""
    labels = np.asarray(split.labels)
    keys = np.array([_key(seed, name) for name in split.names], np.uint64)
    order = np.lexsort((keys, labels))
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = np.clip(np.rint(share * counts), 1, counts - 1).astype(np.int64)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    held = np.zeros(len(labels), np.bool_)
    held[order] = rank < np.repeat(wanted, counts)
    return held


def _key(seed: int, name: str) -> int:
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
