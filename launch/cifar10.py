"""CIFAR-10 from images to linear accuracy: `python launch/cifar10.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import monotonic

from harl_fast.data.container.manifest import check_source
from harl_fast.errors import HarlError
from harl_fast.files import format_seconds
from harl_fast.options import whole_number
from harl_fast.program import run_main
from harl_fast.runfiles import check_folders, discard_run, making_room
from harl_fast.supervision import run_below

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path) -> None:
    """Run one of the daily commands in the project's folder, showing it first."""
    print("\n$", *map(str, command), flush=True)
    if code := run_below([sys.executable, *map(str, command)], cwd=ROOT):
        raise HarlError(f"the command above ended with exit code {code}; its own message says why")


def parse(argv: list[str] | None) -> argparse.Namespace:
    about = "Convert CIFAR-10, pretrain, judge by heads and k-NN beside a random encoder."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, default=Path("data/cifar10"), help="kept (%(default)s)")
    parser.add_argument("--run", type=Path, default=Path("runs/cifar10"), help="new (%(default)s)")
    parser.add_argument("--images", type=whole_number(50, 10**6), help="in both splits (all)")
    parser.add_argument("--epochs", type=whole_number(1, 10**6), help="(the preset's)")
    parser.add_argument("--engine", default="ds_configs/cpu.json", help="(%(default)s)")
    about = "heads on random crops, too: 200 passes (default: unless --images)"
    parser.add_argument("--augmented", action=argparse.BooleanOptionalAction, help=about)
    return parser.parse_args(argv)


def convert(data: Path, out: Path, images: int | None) -> None:
    """Write containers unless they are there; at 32 px the heuristic sees too little to serve."""
    name = f"{data.name}-{images}.csv" if images else data.name
    if (ROOT / out / "val.json").exists():
        return check_source(ROOT / out, name)
    listed = out / name if images else data
    if images:
        run("-m", "preprocess.balanced", data, "--count", str(images), "--out", listed)
    run("-m", "preprocess.beton", "--data", listed, "--out", out, "--mask-method", "enlarged")


def main(argv: list[str] | None = None) -> int:
    args, start = parse(argv), monotonic()
    check_folders({"--run": args.run, "--out": args.out}, data=args.data, base=ROOT)
    out = args.out.with_name(f"{args.out.name}-{args.images}" if args.images else args.out.name)
    heads = {f"{args.run}-linear": (), f"{args.run}-linear-random": ("--random",)}
    convert(args.data.resolve(), out, args.images)
    launcher = (Path(sys.executable).with_name("deepspeed"), "--log_level=error", "--num_gpus", "1")
    guarded = ("launch/guard.py", sys.executable, *launcher)
    common = ("--deepspeed_config", args.engine, "--data", out, "--run")
    length = ["--epochs", str(args.epochs)] if args.epochs else []
    if args.epochs and args.epochs <= 10:
        length += ["--set", "optim.warmup_epochs=0"]  # the preset's is as long
    with making_room(ROOT / args.run, engine=ROOT / args.engine):  # any other content is refused
        run(*guarded, "launch/pretrain.py", *common, args.run, "--config", "cifar10", *length)
    for folder in heads:
        discard_run(ROOT / folder, engine=ROOT / args.engine)
    run("launch/lineval.py", "--ckpt", args.run, "--data", out, "--random")
    head = ("launch/finetune.py", "--ckpt", args.run, "--preset", "seed-linear-cifar10", *common)
    augmented = args.images is None if args.augmented is None else args.augmented
    for folder, more in heads.items() if augmented else ():
        run(*guarded, *head, folder, *more)
    print(f"\nresults: {args.run}*/eval; took {format_seconds(monotonic() - start)}")
    return 0


if __name__ == "__main__":
    run_main(main)
