"""Judge frozen features by a linear head and k-NN: `python launch/lineval.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from harl_fast.config import LARGEST_PX, SMALLEST_PX
from harl_fast.engine.checkpoint import load_encoder, random_encoder
from harl_fast.eval.protocol import Evaluator, table
from harl_fast.files import write_json
from harl_fast.options import SEED_MAX, whole_number
from harl_fast.program import run_main


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
    """Judge the checkpoint's encoder, and a random one when asked; print and write the result."""
    args = parse(argv)
    encoder, config = load_encoder(args.ckpt)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = torch.bfloat16 if device.type == "cuda" else None
    evaluator = Evaluator(
        args.data,
        size_px=args.size_px or config.data.views[0].size_px,
        mean=config.data.mean,
        std=config.data.std,
        device=device,
        batch=args.batch,
        workers=args.workers,
    )
    encoders = {"pretrained": encoder}
    if args.random:
        encoders["random"] = random_encoder(config, seed=args.seed)
    results = {
        name: evaluator(model, epochs=args.epochs, seed=args.seed, label=name, autocast=half)
        for name, model in encoders.items()
    }
    print(table(results, chance=evaluator.chance()))
    folder = args.ckpt if args.ckpt.is_dir() else args.ckpt.parent
    out = args.out or folder / "lineval.json"
    write_json(out, {name: result.record() for name, result in results.items()})
    print(f"result: {out}")
    return 0


if __name__ == "__main__":
    run_main(main)
