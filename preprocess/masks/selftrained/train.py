"""Train the network of ``--mask-method '{selftrained: FILE}'`` on your own images, without labels.

1. An ensemble of cheap methods votes on every image (`preprocess.masks.selftrained.ensemble`).
2. A small network learns the votes from random weights, on altered images and on composites:
   objects that the votes cut out, pasted on other images. Split votes are left out.
3. What the network and the ensemble say together becomes the next targets, and it trains on.

No label is read and no weight is downloaded.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harl_fast.errors import one_line
from harl_fast.files import Progress, check_output, format_seconds
from harl_fast.host import usable_cores
from harl_fast.lock import lock_beside, locked
from harl_fast.options import SEED_MAX, Parser, number, whole_number
from harl_fast.program import head, run_main
from preprocess.images.reading import add_reading, reading_of
from preprocess.sources.options import add_choices, choices_of


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values; exits with code 2 and a message on a wrong one."""
    parser = Parser(
        prog="python -m preprocess.masks.selftrained.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="images; of splits, train")
    add("--out", type=Path, required=True, help="weight file to write, say masks.safetensors")
    images, seed, threads = (whole_number(*ends) for ends in ((1, 10**7), (0, SEED_MAX), (1, 1024)))
    about = "most images used, drawn by seed; default %(default)s"
    add("--images", type=images, default=20_000, metavar="N", help=about)
    about = "training time relative to the default's"
    add("--length", type=number(0.001, 1000.0), default=1.0, metavar="X", help=about)
    about = "other seeds give another network; default %(default)s"
    add("--seed", type=seed, default=0, metavar="N", help=about)
    about = "threads and processes; default: all cores"
    add("--threads", type=threads, default=usable_cores(), metavar="N", help=about)
    add_choices(parser)
    add_reading(parser)
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"argument --out: {args.out} does not end in .safetensors")
    return args


with head(__name__, parse):
    import torch

    from harl_fast.jit import require_compiler
    from harl_fast.runfiles import check_apart
    from preprocess.images.settle import settle
    from preprocess.masks.selftrained.dataset import FEW, Dataset, gather, image_files
    from preprocess.masks.selftrained.ensemble import MEMBERS, VERSION
    from preprocess.masks.selftrained.network import save_network
    from preprocess.masks.selftrained.pseudo_labels import first_targets, refresh
    from preprocess.masks.selftrained.trainer import Recipe, train


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code; raises `DataError` when it cannot be done."""
    args = parse(argv)
    require_compiler()
    for path in (args.out, votes_path(args.out)):
        check_output(path, option="--out")
        check_apart(path, option="--out")
    with locked(lock_beside(args.out), output=args.out):
        make_network(args)
    return 0


def votes_path(out: Path) -> Path:
    """Return where the votes are kept that a network was trained on."""
    return out.with_suffix(".votes.npz")


def make_network(args: argparse.Namespace) -> None:
    """Write the network that the command line asks for."""
    start = time.monotonic()
    recipe = Recipe(seed=args.seed)
    steps = tuple(max(1, round(args.length * steps)) for steps in recipe.steps)
    recipe = replace(recipe, steps=steps)
    files = image_files(args.data, choices_of(args), most=args.images, seed=args.seed)
    cache = votes_path(args.out)
    side = recipe.architecture.side
    reading = settle(reading_of(args), len(files), files.__getitem__)
    dataset = gather(files, cache, side=side, workers=args.threads, reading=reading)
    count = len(dataset.images)
    if count < FEW:
        print(f"{count} images are few: {FEW:,} or more would give better masks", flush=True)
    # One process learns, on one thread, while others draw its batches: that shares the work of two
    # cores evenly, and two threads of torch on a busy machine wait for each other.
    torch.set_num_threads(max(1, args.threads // 2))
    workers = max(0, args.threads - torch.get_num_threads())
    first = first_targets(dataset)
    again = functools.partial(refresh, votes=first.targets, bfloat16=recipe.bfloat16)
    with Progress(recipe.batch * sum(recipe.steps), label="training") as progress:
        net = train(first, recipe, refresh=again, progress=progress, workers=workers)
    save_network(net, args.out, facts(recipe, dataset, threads=args.threads))
    took = format_seconds(time.monotonic() - start)
    for line in (
        f"{args.out}: a mask network trained on {count:,} images in {took}; no labels",
        f"use it: make beton DATA=... MASK_METHOD='{{selftrained: {args.out}}}'",
        f"{cache} holds the votes for another run; it may be deleted",
    ):
        print(one_line(line), flush=True)


def facts(recipe: Recipe, dataset: Dataset, *, threads: int) -> dict[str, Any]:
    """Return what the weight file records of its making."""
    return {
        "supervision": "none",
        "images": len(dataset.images),
        "unreadable": dataset.unreadable,
        "mean_agreement": round(float(dataset.agreement.mean()), 4),
        "committee": {"members": sorted(MEMBERS), "version": VERSION},
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "threads": threads,
    }


if __name__ == "__main__":
    run_main(main)
