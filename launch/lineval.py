"""Judge frozen features by a linear head and k-NN: `python launch/lineval.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.eval import options as own
from harl_fast.finetuning import LINEAR_PRESETS
from harl_fast.options import SEED_MAX, Parser, number, whole_number, whole_numbers


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    about = "Train heads on an encoder's frozen features of train.beton, judge them on val.beton; "
    about += "on any number of ranks."
    # What was not given stays away, so that an option of another protocol is noticed.
    parser = Parser(description=about, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="run folder, checkpoint or file of weights")
    add("--data", type=Path, required=True, help="folder with containers of train and val")
    about = "; ".join(f"{name}: {what}" for name, what in own.PROTOCOLS.items()) + " (%(default)s)"
    add("--protocol", choices=list(own.PROTOCOLS), default="cached", help=about)
    for flag, about in (
        ("--random", "also judge a randomly initialised encoder, the baseline"),
        ("--cache", "keep features in features/ beside --ckpt, and take them from there (default)"),
    ):
        add(flag, action=argparse.BooleanOptionalAction, help=about)
    for flag, low, high, about in (
        ("--epochs", 1, 10**6, f"of cached, over the features ({own.EPOCHS}), or of imagenet"),
        ("--batch", 1, 1 << 16, f"images in one pass ({own.BATCH}); of imagenet in a global step"),
        ("--workers", 0, 1024, "decoding threads (default: one per core)"),
        ("--seed", 0, SEED_MAX, "of split, order and random encoder (0)"),
        ("--subset-seed", 0, SEED_MAX, "of --subset (0)"),
    ):
        add(flag, type=whole_number(low, high), metavar="N", help=about)
    crop = f"default: {own.CROP}; to {own.SMALL_PX} px 1"
    for flag, least, most, about in (
        ("--crop", 0.1, 1.0, f"central share that is seen ({crop})"),
        ("--knn-temperature", 1e-3, 1e3, f"of k-NN's votes ({own.TEMPERATURE})"),
    ):
        add(flag, type=number(least, most), metavar="X", help=about)
    neighbours = ",".join(map(str, own.NEIGHBOURS))
    about = f"neighbours (default: {neighbours})"
    add("--knn", type=whole_numbers(1, 10**6), metavar="K,..", help=about)
    for flag, settings in own.input_options().items():
        add(flag, **settings)
    add("--subset", metavar="S", help="training samples: FILE of names, 1%%, 5-per-class")
    add("--out", type=Path, help="JSON file (default: lineval.json beside --ckpt)")
    add("--pictures", action="store_true", help="also draw the result")
    add("--deepspeed_config", type=Path, help="engine file of imagenet")
    add("--preset", help=f"of imagenet: {', '.join(LINEAR_PRESETS)} (default: the first)")
    add("--local_rank", type=whole_number(-1, 10**6), default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Judge; return the exit code."""
    args = vars(parse(argv))
    own.check_options(args["protocol"], args)
    del args["local_rank"]
    # Late: torch and FFCV take seconds, which --help and usage errors need not wait for.
    if args["protocol"] == "imagenet":
        from harl_fast.engine.finetune import linear_protocol as linear

        del args["protocol"]
        return linear(engine_file=args.pop("deepspeed_config", None), **args)
    from harl_fast.engine.lineval import lineval

    if args.pop("pictures", False):
        from harl_fast.tools.pictures import beside

        args["draw"] = beside(args["data"])
    return lineval(**args)


if __name__ == "__main__":
    harl_fast.program.run_main(main)
