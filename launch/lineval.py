"""Judge frozen features by a linear head and k-NN: `python launch/lineval.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.errors import run_main


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(
        description="Train linear heads on an encoder's frozen features of train.beton and report "
        "their accuracy, and k-NN's, on val.beton.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="run folder or checkpoint")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train.beton and val.beton"
    )
    parser.add_argument(
        "--random",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also judge a randomly initialised encoder, the baseline",
    )
    parser.add_argument("--size-px", type=int, help="view side (default: the pretraining's)")
    parser.add_argument(
        "--epochs", type=int, default=100, help="passes over the features (%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=256, help="images in one encoder pass (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="decoding threads (%(default)s: one a core)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of split, order and random encoder (%(default)s)"
    )
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
