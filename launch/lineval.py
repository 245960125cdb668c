"""Judge frozen features by a linear head and k-NN: `python launch/lineval.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harl_fast.config import LARGEST_PX, SMALLEST_PX
from harl_fast.finetuning import LINEAR_PRESETS, PROTOCOL_FLAGS, PROTOCOLS
from harl_fast.options import (
    SEED_MAX,
    number,
    options_of,
    per_channel,
    whole_number,
    whole_numbers,  # fmt: skip
)
from harl_fast.program import run_main


def parse(argv: list[str] | None) -> dict[str, Any]:
    """Return the values that apply to the protocol."""
    about = "Train heads on an encoder's frozen features of train.beton, judge them on val.beton."
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="run folder, checkpoint or file of weights")
    add("--data", type=Path, required=True, help="folder with containers of train and val")
    about = "; ".join(f"{name}: {what}" for name, what in PROTOCOLS.items()) + " (%(default)s)"
    add("--protocol", choices=list(PROTOCOLS), default="cached", help=about)
    for flag, given, about in (
        ("--random", False, "also judge a randomly initialised encoder, the baseline"),
        ("--cache", True, "keep features in features/ beside --ckpt, and take them from there"),
    ):
        add(flag, action=argparse.BooleanOptionalAction, default=given, help=about)
    for flag, low, high, default, about in (
        ("--size-px", SMALLEST_PX, LARGEST_PX, None, "view side (default: the pretraining's)"),
        ("--epochs", 1, 10**6, 100, "passes over the features of cached (%(default)s)"),
        ("--batch", 1, 1 << 16, 256, "images in one encoder pass (%(default)s)"),
        ("--workers", 0, 1024, 0, "decoding threads (%(default)s: one per core)"),
        ("--seed", 0, SEED_MAX, 0, "of split, order and random encoder (%(default)s)"),
        ("--subset-seed", 0, SEED_MAX, 0, "of --subset (%(default)s)"),
    ):
        add(flag, type=whole_number(low, high), default=default, metavar="N", help=about)
    for flag, least, most, usual, about in (
        ("--crop", 0.1, 1.0, None, "central share that is seen (default: 0.875; to 32 px 1)"),
        ("--knn-temperature", 1e-3, 1e3, 0.07, "of k-NN's votes (%(default)s)"),
    ):
        add(flag, type=number(least, most), default=usual, metavar="X", help=about)
    for flag, kind, about in (
        ("--knn", whole_numbers(1, 10**6), "neighbours (default: 10,20,50,100,200)"),
        ("--mean", per_channel(0.0, 1.0), "normalisation (default: the checkpoint's)"),
        ("--std", per_channel(1e-3, 1e3), "and its scale, one per channel"),
    ):
        add(flag, type=kind, metavar="X,..", help=about)
    add("--subset", metavar="S", help="training samples: FILE of names, 1%%, 5-per-class")
    add("--out", type=Path, help="JSON file (default: lineval.json beside --ckpt)")
    add("--deepspeed_config", type=Path, help="engine file of imagenet")
    add("--preset", default="seed-readme", help=f"of imagenet: {', '.join(LINEAR_PRESETS)}")
    add("--local_rank", type=whole_number(-1, 10**6), default=0, help=argparse.SUPPRESS)
    return options_of(parser, parser.parse_args(argv), "--protocol", PROTOCOL_FLAGS)


def main(argv: list[str] | None = None) -> int:
    """Judge; return the exit code."""
    args = parse(argv)
    del args["local_rank"]
    # Late: torch and FFCV take seconds, which --help and usage errors need not wait for.
    if args["protocol"] != "imagenet":
        from harl_fast.engine.lineval import lineval

        return lineval(**args)
    from harl_fast.engine.finetune import linear_protocol

    del args["protocol"]
    return linear_protocol(engine_file=args.pop("deepspeed_config"), **args)


if __name__ == "__main__":
    run_main(main)
