"""`make bench-convert`: our conversion against FFCV's own writer, in interleaved rounds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import open_set, report
from benchmarks.process import machine_facts
from benchmarks.report import Ratio, Row, spread
from benchmarks.results import bars_among, conclude
from benchmarks.rounds import Field
from harl_fast.files import check_output
from harl_fast.host import usable_cores
from harl_fast.options import number, whole_number
from harl_fast.program import head, run_main

BASE = Path("data/bench")
SIDE_PX = 512
RATIOS = (
    Ratio("C1", "without masks over ffcv's writer", "ours", ("ffcv",), 1.0, 1.3),
    Ratio("C2", "with mask files over ffcv's, with them", "ours_masks", ("ffcv_masks",), 0.9, 1.2),
    Ratio("C2", "  masks found meanwhile, over ffcv without", "ours_heuristic", ("ffcv",)),
    Ratio("C3", "passthrough over encoding again", "ours_passthrough", ("ours",), 2.0, 5.0),
    Ratio("C4", "two workers over one", "ours", ("ours_one",), 1.85, 1.95),
    Ratio("C4", "  ffcv's own", "ffcv", ("ffcv_one",)),
    Ratio("C5", "tar shards over the folder", "ours_tar", ("ours",), 0.9, 1.1),
    Ratio("C5", "Parquet over the folder", "ours_parquet", ("ours",), 0.9, 1.1),
    Ratio("C6", "loading 64 shards over one", "loader_64", ("loader_1",), 0.98, 1.0),
)
BARS = (*dict.fromkeys(ratio.bar for ratio in RATIOS), "C7")
SHARDS = 64
OPENED, TURNS = 10_000_000, 3
"""C7: simulated samples, and how often the set is opened."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="photos; default: made from sample photos")
    count, rounds = whole_number(100, 10**7), whole_number(1, 10**4)
    add("--count", type=count, default=4800, metavar="N", help="pictures; default %(default)s")
    add("--rounds", type=rounds, default=5, metavar="N", help="default %(default)s")
    seconds = number(0.1, 3600)
    add("--seconds-per-turn", type=seconds, default=4.0, metavar="S", help="default %(default)s")
    about = "bars to measure; default all"
    add("--only", dest="bars", type=bars_among(BARS), default=BARS, metavar="C1,C3", help=about)
    add("--out", type=Path, default=Path("runs/bench/convert.json"), metavar="FILE")
    return parser.parse_args(argv)


with head(__name__, parse):
    from benchmarks import inputs


def plans(root: Path, *, count: int, cores: int, bars: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of each contender that the bars' ratios need."""
    images, out = root / "source/train", root / "converted"
    # Without a held-out part, which would be a second container of images that ffcv does not write.
    read = ["--max-resolution", str(SIDE_PX), "--quality", str(inputs.QUALITY), "--val", "0"]
    plain = ["--data", str(images), *read]
    without, given = ["--mask-method", "full"], ["--masks", str(root / "whole_masks")]
    ours = {"module": "convert_ours", "count": count, "workers": cores, "lead": 1}
    ffcv = {"module": "convert_ffcv", "images": str(images), "side": SIDE_PX, "masks": ""}
    ffcv |= {"workers": cores, "lead": 1}
    loader = {"module": "ours", "threads": cores, "lead": 6, "batch": 64}
    known: dict[str, dict[str, Any]] = {
        "ffcv": ffcv,
        "ours": ours | {"options": plain + without},
        "ffcv_masks": ffcv | {"masks": str(root / "whole_masks")},
        "ours_masks": ours | {"options": plain + given},
        "ours_heuristic": ours | {"options": plain},
        "ours_passthrough": ours | {"options": [*plain, *without, "--store", "passthrough"]},
        "ffcv_one": ffcv | {"workers": 1},
        "ours_one": ours | {"options": plain + without, "workers": 1},
        "loader_1": loader | {"container": str(out / "set_1/train.beton")},
        "loader_64": loader | {"container": str(out / "set_64/train")},
    }
    for kind in ("tar", "parquet"):
        data = ["--data", str(root / "packed" / kind), "--source", kind]
        known[f"ours_{kind}"] = ours | {"options": [*data, *read, *without]}
    needed = report.needed(RATIOS, bars)
    return {n: s | {"out": str(out / n)} for n, s in known.items() if n in needed}


def make_sets(root: Path, *, count: int) -> None:
    """Write the containers of C6: one, and `SHARDS` of the same images."""
    from preprocess.beton import main as convert  # takes seconds, and C7 alone needs it not

    options = ["--data", str(root / "source"), "--mask-method", "full", "--out"]
    for shards in (1, SHARDS):
        size = ["--shard-size", str(-(-count // shards))]
        convert([*options, str(root / f"converted/set_{shards}"), *size])


def opening_rows(folder: Path) -> list[Row]:
    """Return C7's lines."""
    large, small = folder / str(OPENED), folder / "1000"
    for place, count in ((large, OPENED), (small, 1000)):
        if not (place / "train.json").exists():  # written last
            open_set.make_set(place, count)
    turns = [open_set.measure(large / "train", small / "train") for _ in range(TURNS)]
    seconds, peak = (spread([turn[key] for turn in turns]) for key in ("seconds", "peak_mb"))
    what = f"opening {OPENED:,} samples"
    return [
        Row("C7", what, seconds.median, "s", 5.0, 1.0, seconds, less_is_better=True),
        Row("C7", "  its memory", peak.median, "MB", 1000.0, 400.0, peak, less_is_better=True),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 0 even when a bar is missed, for the table says so."""
    args = parse(argv)
    cores, logs = usable_cores(), args.out.parent / "logs"
    check_output(args.out, option="--out")
    logs.mkdir(parents=True, exist_ok=True)
    facts = machine_facts()
    root = inputs.image_set(BASE, count=args.count, data=args.data)
    if "C5" in args.bars:
        inputs.packed(root)
    if "C6" in args.bars:
        make_sets(root, count=args.count)
    made = plans(root, count=args.count, cores=cores, bars=args.bars)
    opening = opening_rows(BASE / "open_set") if "C7" in args.bars else []
    rounds: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if made:
        with Field(made, threads=cores, logs=logs, warm_s=0.1) as field:
            rounds = field.rounds(args.rounds, seconds=args.seconds_per_turn)
            failed = field.failed
    speeds = report.rates(rounds)
    rows = [*report.ratio_rows(speeds, RATIOS), *opening]
    print(f"\n{facts['cpu']}, {cores} cores; {args.count} JPEGs, at most {SIDE_PX} px, "
          f"{args.rounds} rounds of {args.seconds_per_turn:g} s a turn\n")  # fmt: skip
    if speeds:
        print(report.rate_table(speeds) + "\n")
    conclude(args.out, rows, rounds, machine=facts, more={
        "input": {"set": root.name, "count": args.count},
        "settings": {"rounds": args.rounds, "seconds_per_turn": args.seconds_per_turn,
                     "contenders": made, "left_out": failed},
        "rates": speeds,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    run_main(main)
