"""Judge frozen features by a linear head and k-NN: `python launch/lineval.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.config import LARGEST_PX, SMALLEST_PX
from harl_fast.options import SEED_MAX, whole_number
from harl_fast.program import run_main


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(
        description="Train linear heads on an encoder's frozen features of train.beton and report "
        "their accuracy, and k-NN's, on val.beton."
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="run folder or checkpoint")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with containers of train and val"
    )
    parser.add_argument(
        "--random",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also judge a randomly initialised encoder, the baseline",
    )
    for flag, low, high, default, about in (
        ("--size-px", SMALLEST_PX, LARGEST_PX, None, "view side (default: the pretraining's)"),
        ("--epochs", 1, 10**6, 100, "passes over the features (%(default)s)"),
        ("--batch", 1, 1 << 16, 256, "images in one encoder pass (%(default)s)"),
        ("--workers", 0, 1024, 0, "decoding threads (%(default)s: one per core)"),
        ("--seed", 0, SEED_MAX, 0, "of split, order and random encoder (%(default)s)"),
    ):
        kind = whole_number(low, high)
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=about)
    parser.add_argument("--out", type=Path, help="JSON file (default: lineval.json beside --ckpt)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Judge; return the exit code."""
    args = parse(argv)
    # Imported late: torch and FFCV take seconds, which --help and usage errors need not wait for.
    from harl_fast.engine.lineval import lineval

    return lineval(**vars(args))


if __name__ == "__main__":
    run_main(main)
