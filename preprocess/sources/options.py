"""The options that say which kind of source is read, and what is held out."""

from __future__ import annotations

import argparse

from harl_fast.errors import shown
from harl_fast.options import SEED_MAX, checked, to_float, whole_number
from preprocess.sources import SOURCES, Choices


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that `choices_of` reads."""
    add = parser.add_argument
    kinds = "; ".join(f"{name}: {reader.about}" for name, reader in SOURCES.items())
    add(
        "--source",
        choices=list(SOURCES),
        metavar="KIND",
        help=f"kind of --data where the guess is wrong: {kinds}",
    )
    add(
        "--val",
        type=checked(parse_share),
        metavar="SHARE",
        help="what to hold out of each class where --data has no val/: 5%% or 0.05; default 5%% of "
        "images with labels, 0 of others",
    )
    about = "other seeds hold other images out; default %(default)s"
    add("--val-seed", type=whole_number(0, SEED_MAX), default=0, metavar="N", help=about)


def choices_of(args: argparse.Namespace) -> Choices:
    """Return how the command line asks for a source to be read."""
    return Choices(args.source, args.val, args.val_seed)


def parse_share(text: str) -> float:
    """Return a share such as 5% or 0.05, from 0 to below 1; else `ValueError`."""
    digits = text.removesuffix("%")
    share = to_float(digits) / (1 if digits == text else 100)
    if not 0 <= share < 1:
        raise ValueError(f"{shown(text)} is no share from 0 to below 1, such as 5% or 0.05")
    return share
