"""Do masks help an encoder to see objects? The whole in one go: `python launch/demo.py --help`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.demoset import IMAGES, SIDE_PX, holds, set_name
from harl_fast.errors import one_line
from harl_fast.files import format_seconds
from harl_fast.options import whole_number
from harl_fast.runfiles import check_folders, making_room, replacing_runs
from harl_fast.steps import ROOT, TRAINING, run

SHEET = "contact_sheet.png"
WITHOUT_MASKS = (
    "loss.type=byol",
    *(f"data.views.{view}.{it}" for view in (0, 1) for it in ("crop=random", "background_p=0")),
)
"""What the run without masks changes in the preset `demo`; all else is equal."""
QUICK_IMAGES, QUICK = 400, ("--epochs", "2", "--set", "optim.warmup_epochs=0")


def parse(argv: list[str] | None) -> argparse.Namespace:
    about = "Draw objects before scenes, pretrain without and with their masks, judge the features."
    parser = argparse.ArgumentParser(description=about)
    add, size = parser.add_argument, whole_number(QUICK_IMAGES, 10**6)
    about = f"every step once: {QUICK_IMAGES} images, 2 epochs, in folders demo-quick"
    add("--quick", action="store_true", help=about)
    add("--data", type=Path, help="containers; kept if they are of this set (data/demo)")
    add("--run", type=Path, help="run with masks; the other is RUN-byol; replaced (runs/demo)")
    add("--images", type=size, metavar="N", help=f"in both splits together ({IMAGES})")
    add("--epochs", type=whole_number(2, 10**6), metavar="N", help="of each run (the preset's)")
    add("--engine", default="ds_configs/cpu.json", help="DeepSpeed configuration (%(default)s)")
    args = parser.parse_args(argv)
    name, images = ("demo-quick", QUICK_IMAGES) if args.quick else ("demo", IMAGES)
    args.data, args.run = args.data or Path("data") / name, args.run or Path("runs") / name
    args.images = args.images or images
    return args


def main(argv: list[str] | None = None) -> int:
    args, start = parse(argv), time.monotonic()
    plain = args.run.parent / f"{args.run.name}-byol"
    for folder in (args.run, plain):
        check_folders({"--run": folder, "--data": args.data}, base=ROOT)
    with replacing_runs([ROOT / plain, ROOT / args.run], engine=ROOT / args.engine):
        train_and_judge(args, plain)
    print(f"{SHEET}: {one_line(str(args.run / SHEET))}")
    print(f"took {format_seconds(time.monotonic() - start)}")
    return 0


def train_and_judge(args: argparse.Namespace, plain: Path) -> None:
    """Draw the set unless it is there, train both runs, judge and draw them."""
    if not holds(ROOT / args.data, set_name(args.images, SIDE_PX, seed=0)):
        size = ["--demo-images", str(args.images), "--mask-size", str(SIDE_PX)]
        run("-m", "preprocess.beton", "--out", args.data, *size)
    command: list[str | Path] = [*TRAINING, "launch/pretrain.py", "--deepspeed_config", args.engine]
    command += ["--config", "demo", "--data", args.data, *(QUICK if args.quick else ())]
    command += [] if args.epochs is None else ["--epochs", str(args.epochs)]
    without = [word for each in WITHOUT_MASKS for word in ("--set", each)]
    for folder, changed in {plain: without, args.run: []}.items():
        with making_room(ROOT / folder, engine=ROOT / args.engine):
            run(*command, *changed, "--run", folder)
    drawn = ["--config", args.run / "config.yaml", "--out", args.run / SHEET]
    run("-m", "preprocess.preview", args.data / "train.beton", *drawn)
    judged = ["--without", plain, "--with", args.run, "--out", args.run]
    run("-m", "harl_fast.tools.demo_report", "--data", args.data, *judged)


if __name__ == "__main__":
    harl_fast.program.run_main(main)
