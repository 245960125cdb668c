"""What the demo learnt, with and without masks: `python -m harl_fast.tools.demo_report --help`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.demoset import SPLITS
from harl_fast.errors import one_line
from harl_fast.files import check_output, write_bytes
from harl_fast.options import SEED_MAX, Parser, whole_number
from harl_fast.runfiles import RunFolder, home

if TYPE_CHECKING:
    from harl_fast.data.container.manifest import Manifest
    from harl_fast.engine.networks import Pretrained
    from harl_fast.tools.demo_scores import Accuracy

RANDOM, WITHOUT, WITH = "random", "without masks", "with masks"
"""The encoders that are compared."""
FIGURES = "demo.json"
BY_DESIGN = (
    "The backgrounds distract by design: scenes are easier to tell apart than objects, and each "
    "object stands in every scene equally often. Masks were used in training only."
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m harl_fast.tools.demo_report",
        description="Judge frozen features on the demo set: objects, scenes, and objects in scenes "
        "that the heads were not trained on, for two runs and a random encoder. Prints a table; "
        "writes demo.json, accuracy.png and neighbours.png.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the demo set's containers")
    add("--without", type=Path, required=True, metavar="RUN", help="trained without masks")
    add("--with", type=Path, required=True, metavar="RUN", help="trained with masks", dest="masked")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    seed = whole_number(0, SEED_MAX)
    add("--seed", type=seed, default=0, metavar="N", help="of the random encoder and the heads (0)")
    return parser.parse_args(argv)


def table(found: Mapping[str, Mapping[str, Accuracy]], *, chance: Mapping[str, float]) -> str:
    """Return the accuracies in percent as aligned text, a line for each encoder."""
    read_out = [*next(iter(found.values()))]
    width = max(len(what) for what in read_out) + 3
    lines = [f"{'top-1 in %':<15}" + "".join(f"{what:>{width}}" for what in read_out)]
    lines.append(" " * 15 + "".join(f"{'linear':>{width - 8}}{'k-NN':>8}" for _ in read_out))
    for name, accuracies in found.items():
        cells = (
            f"{each.linear.value:>{width - 8}.1f}{each.knn.value:>8.1f}"
            for each in accuracies.values()
        )
        lines.append(f"{name:<15}" + "".join(cells))
    lines.append(f"{'chance':<15}" + "".join(f"{chance[what]:>{width}.1f}" for what in read_out))
    every = [s for each in found.values() for a in each.values() for s in (a.linear, a.knn)]
    most = max(max(score.high - score.value, score.value - score.low) for score in every)
    lines.append(f"95 % intervals reach up to {most:.1f} points to either side.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Judge, draw and print; return the exit code."""
    args = parse(argv)
    # Imported late: torch takes seconds, which --help and usage errors need not wait for.
    from harl_fast.data.container.manifest import find_container, read_manifest
    from harl_fast.engine.networks import load_pretrained, random_like
    from harl_fast.tools import charts, demo_pictures
    from harl_fast.tools.demo_scores import chance, extract_splits, judge

    charts.check_extra()
    check_output(args.out, option="--out", folder=True)
    manifests = {split: read_manifest(find_container(args.data, split)) for split in SPLITS}
    masked, without = load_pretrained(args.masked), load_pretrained(args.without)
    encoders = {RANDOM: random_like(masked, seed=args.seed), WITHOUT: without, WITH: masked}
    features = {
        name: extract_splits(each, args.data, label=name) for name, each in encoders.items()
    }
    found = {name: judge(*each, seed=args.seed) for name, each in features.items()}
    guessed = chance(features[RANDOM][0])
    _write_figures(args, encoders, found, manifests)
    title = "Demo set: what is read out of frozen features (masks are used in training only)"
    picture = demo_pictures.bars(found, chance=guessed, title=title)
    write_bytes(args.out / "accuracy.png", picture)
    title = "Validation images, and the training images nearest to them in each encoder's features"
    picture = demo_pictures.neighbours(features, args.data, title=title, seed=args.seed)
    write_bytes(args.out / "neighbours.png", picture)
    scenes = len(features[RANDOM][0].scenes.labels.unique())
    about, words = _about(args, encoders, manifests, scenes=scenes), textwrap.wrap(BY_DESIGN, 96)
    print("\n".join(["", *about, "", table(found, chance=guessed), "", *words, ""]))
    for name in (FIGURES, "accuracy.png", "neighbours.png"):
        print(one_line(f"{name}: {args.out / name}"))
    return 0


def _about(
    args: argparse.Namespace,
    encoders: Mapping[str, Pretrained],
    manifests: Mapping[str, Manifest],
    *,
    scenes: int,
) -> list[str]:
    """Return lines on the set and on both runs, from the files that they left."""
    train, val = (manifests[split] for split in SPLITS)
    lines = [
        f"demo set: {train.count:,} training and {val.count:,} validation images of "
        f"{len(train.classes)} objects before {scenes} scenes; objects cover "
        f"{train.mask['coverage_mean']:.0%} on average"
    ]
    for name, ckpt in ((WITHOUT, args.without), (WITH, args.masked)):
        lines.append(f"{name}: {_trained(encoders[name], ckpt)} ({ckpt})")
    return [one_line(line) for line in lines]


def _trained(encoder: Pretrained, ckpt: Path) -> str:
    """Return how long a network was trained, and what its run's log says up to there."""
    from harl_fast.engine.lineval import checkpoint_record
    from harl_fast.engine.runfolder import json_lines

    run = home(ckpt)
    step = checkpoint_record(encoder, run)["step"]
    if step is None:
        return "weights of another program"
    logged = [
        each
        for each in json_lines(RunFolder(run).metrics)
        if all(isinstance(each.get(key), int | float) for key in ("step", "loss", "img_s"))
        and each["step"] <= step
    ]
    told = [f"{each['img_s']:,.0f} images/s, loss {each['loss']:.4f}" for each in logged[-1:]]
    return f"{step:,} steps at {told[0]}" if told else f"{step:,} steps, nothing logged"


def _write_figures(
    args: argparse.Namespace,
    encoders: Mapping[str, Pretrained],
    found: Mapping[str, Mapping[str, Accuracy]],
    manifests: Mapping[str, Manifest],
) -> None:
    from harl_fast.provenance import code_version
    from harl_fast.results import write_result

    provenance = {
        "weights": {name: each.weights_sha256 for name, each in encoders.items()},
        "data": {split: each.beton_sha256 for split, each in manifests.items()},
        "source": manifests["train"].source,
        "seed": args.seed,
        "code": code_version(),
    }
    figures = {
        name: {what: asdict(each) for what, each in accuracies.items()}
        for name, accuracies in found.items()
    }
    write_result(args.out / FIGURES, {"top1": figures}, provenance=provenance, name="demo")


if __name__ == "__main__":
    harl_fast.program.run_main(main)
