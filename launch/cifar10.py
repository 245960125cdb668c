"""CIFAR-10 from images to linear accuracy: `python launch/cifar10.py --help`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.files import format_seconds
from harl_fast.options import Parser, whole_number
from harl_fast.runfiles import check_folders, discard_run, making_room, replacing_runs
from harl_fast.steps import ROOT, TRAINING, run

PRESETS = ("cifar10", "cifar10-small")  # the second for CPU cores


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description="Convert CIFAR-10, pretrain, judge it beside a random encoder.")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, default=Path("data/cifar10"), help="kept (%(default)s)")
    parser.add_argument("--run", type=Path, default=Path("runs/cifar10"), help="new (%(default)s)")
    parser.add_argument("--images", type=whole_number(50, 10**6), help="in both splits (all)")
    parser.add_argument("--config", choices=PRESETS, default=PRESETS[0], help="(%(default)s)")
    parser.add_argument("--epochs", type=whole_number(1, 10**6), help="(the preset's)")
    parser.add_argument("--engine", default="ds_configs/cpu.json", help="(%(default)s)")
    about = "heads on random crops, too: 200 passes (default: unless --images)"
    parser.add_argument("--augmented", action=argparse.BooleanOptionalAction, help=about)
    return parser.parse_args(argv)


def convert(data: Path, out: Path, images: int | None) -> None:
    """Write containers unless they are there; at 32 px the heuristic sees too little to serve."""
    name = f"{data.name}-{images}.csv" if images else data.name
    listed = out / name if images else data
    if (ROOT / out / "val.json").exists():
        from harl_fast.data.container.names import check_source  # after seconds of imports

        return check_source(ROOT / out, name, data=data, listed=ROOT / listed if images else None)
    if images:
        run("-m", "preprocess.balanced", data, "--count", str(images), "--out", listed)
    run("-m", "preprocess.beton", "--data", listed, "--out", out, "--mask-method", "enlarged")


def main(argv: list[str] | None = None) -> int:
    args, start = parse(argv), monotonic()
    out = Path(f"{args.out}-{args.images}") if args.images else args.out
    heads = {Path(f"{args.run}-linear"): (), Path(f"{args.run}-linear-random"): ("--random",)}
    for folder in (args.run, *heads):
        check_folders({"--run": folder, "--out": out}, data=args.data, base=ROOT)
    runs, engine = [ROOT / folder for folder in (args.run, *heads)], ROOT / args.engine
    with replacing_runs(runs, engine=engine, inputs=[args.data, ROOT / out]):
        convert(args.data.resolve(), out, args.images)
        train_and_judge(args, out, heads)
    print(f"\nresults: {args.run}*/eval; took {format_seconds(monotonic() - start)}")
    return 0


def train_and_judge(
    args: argparse.Namespace, out: Path, heads: Mapping[Path, Sequence[str]]
) -> None:
    """Pretrain on the containers in ``out`` and judge the features; also train ``heads``."""
    common = ("--deepspeed_config", args.engine, "--data", out, "--run")
    length = ["--epochs", str(args.epochs)] if args.epochs else []
    if args.epochs and args.epochs < 20:  # the preset's warm-up would be long
        length += ["--set", f"optim.warmup_epochs={args.epochs / 10}"]
    with making_room(ROOT / args.run, engine=ROOT / args.engine):
        run(*TRAINING, "launch/pretrain.py", *common, args.run, "--config", args.config, *length)
    for folder in heads:
        discard_run(ROOT / folder, engine=ROOT / args.engine)
    run("launch/lineval.py", "--ckpt", args.run, "--data", out, "--random")
    head = ("launch/finetune.py", "--ckpt", args.run, "--preset", "seed-linear-cifar10", *common)
    augmented = args.images is None if args.augmented is None else args.augmented
    for folder, more in heads.items() if augmented else ():
        run(*TRAINING, *head, folder, *more)


if __name__ == "__main__":
    harl_fast.program.run_main(main)
