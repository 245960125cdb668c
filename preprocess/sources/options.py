"""The options that say which kind of source is read, and what is held out."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.errors import shown
from harl_fast.options import SEED_MAX, checked, to_float, whole_number
from preprocess.sources import SOURCES, Choices
from preprocess.sources.base import NO_LABELS


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that `choices_of` reads."""
    add = parser.add_argument
    kinds = ", ".join(SOURCES)
    about = f"what --data is, where the guess is wrong: {kinds}"
    add("--source", choices=list(SOURCES), metavar="KIND", help=about)
    add("--image-column", metavar="NAME", help="the images' bytes in Parquet files")
    about = f"their labels, or tar shards' suffix or JSON key with them; {NO_LABELS}: no labels"
    add("--label-column", metavar="NAME", help=about)
    about = "go on without shards and tables that are broken"
    add("--skip-broken", action="store_true", help=about)
    about = "share of each class to hold out where there is no val/: 5%% or 0.05"
    add("--val", type=checked(parse_share), metavar="SHARE", help=about)
    seed = whole_number(0, SEED_MAX)
    add("--val-seed", type=seed, default=0, metavar="N", help="others hold out other images")


def choices_of(args: argparse.Namespace, scratch: Path | None = None) -> Choices:
    """Return how the command line asks for a source to be read. scratch: see `Choices`."""
    return Choices(
        source=args.source,
        val=args.val,
        seed=args.val_seed,
        image_column=args.image_column,
        label_column=args.label_column,
        skip_broken=args.skip_broken,
        scratch=scratch,
    )


def parse_share(text: str) -> float:
    """Return a share such as 5% or 0.05, from 0 to below 1; else `ValueError`."""
    digits = text.removesuffix("%")
    share = to_float(digits) / (1 if digits == text else 100)
    if not 0 <= share < 1:
        raise ValueError(f"{shown(text)} is no share from 0 to below 1, such as 5% or 0.05")
    return share
