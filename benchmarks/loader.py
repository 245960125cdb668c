"""`make bench-loader`: our loader against its peers, in interleaved rounds of one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import report, solo
from benchmarks.process import machine_facts
from benchmarks.results import bars_among, conclude
from benchmarks.rounds import Field
from harl_fast.files import Progress, check_output
from harl_fast.host import usable_cores
from harl_fast.options import number, whole_number
from harl_fast.program import head, run_main

BARS = ("L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9", "L10")
BASE = Path("data/bench")
BATCH, WORKER_BATCH, LEAD = 128, 32, 6
"""Samples per batch; for DataLoader, whose workers make whole batches; batches not counted."""
MEMORY_BATCH, STARTS = 512, 3


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, metavar="FOLDER", help="photos; default: made from sample photos")
    add(
        "--count",
        type=whole_number(100, 10**7),
        default=3200,
        metavar="N",
        help="pictures; default %(default)s, six of L7's batches",
    )
    rounds, seconds = whole_number(1, 10**4), number(0.1, 3600)
    add("--rounds", type=rounds, default=7, metavar="N", help="default %(default)s")
    add("--seconds-per-turn", type=seconds, default=4.0, metavar="S", help="default %(default)s")
    about = "bars to measure; default all"
    add("--only", dest="bars", type=bars_among(BARS), default=BARS, metavar="L3,L4", help=about)
    add("--out", type=Path, default=Path("runs/bench/loader.json"), metavar="FILE")
    add("--check", action="store_true", help="describe each contender's output, measure nothing")
    return parser.parse_args(argv)


with head(__name__, parse):
    from benchmarks import inputs


def plans(names: list[str], root: Path, *, count: int, cores: int, log: Path) -> dict[str, Any]:
    """Return each contender's settings; a store that cannot be written is left out, with a note."""
    batch = max(4, min(BATCH, count // (2 * LEAD)))
    images = str(root / "source/train")
    files = {"module": "bare", "images": images, "threads": cores, "lead": 1}
    torchvision = {
        "module": "peer_torchvision",
        "images": images,
        "threads": cores,
        "lead": LEAD,
        "batch": min(WORKER_BATCH, batch),
    }
    ours = {"module": "ours", "threads": cores, "lead": LEAD, "batch": batch}
    known: dict[str, dict[str, Any]] = {
        "pil": torchvision | {"kind": "pil"},
        "v2": torchvision | {"kind": "v2"},
        "v2_separable": torchvision | {"kind": "v2_separable"},
        "ffcv": ours | {"module": "peer_ffcv"},
        "ffcv_cv1": ours | {"module": "peer_ffcv", "environment": {"OPENCV_FOR_THREADS_NUM": "1"}},
        "bare": files,
        "bare_fastdct": files | {"fast": True},
        "bare_one": files | {"threads": 1},
        "ours_float": ours | {"coloured": True, "store": "jpg"},
        "ours_uint8": ours | {"store": "jpg"},
        "ours_uint8_one": ours | {"store": "jpg", "threads": 1},
        "ours_unchecked": ours | {"store": "jpg", "check": "none"},
        "ours_half": ours | {"store": "jpg", "background_p": 0.5},
        "ours_replaced": ours | {"store": "jpg", "background_p": 1.0},
    }
    known |= {f"ours_{s}": ours | {"store": s} for s in inputs.STORES if s != "jpg"}
    made = {name: known[name] for name in names}
    stores = dict.fromkeys(s["store"] for s in made.values() if "store" in s)
    written = {store: inputs.our_container(root, store, log) for store in stores}
    for name, settings in list(made.items()):
        if settings["module"] == "peer_ffcv":
            settings["container"] = str(inputs.stock_container(root, log))
        elif "store" in settings:
            container = written[settings["store"]]
            settings["container"] = str(container)
            if isinstance(container, str):
                print(f"note: {name} is left out: {container}", flush=True)
                del made[name]
    return made


def check(made: dict[str, Any], *, cores: int, logs: Path) -> None:
    """Print what each contender's batches hold."""
    with Field(made, threads=cores, logs=logs, warm_s=0.1) as field:
        for name, contender in field.contenders.items():
            print(f"\n{name}: {contender.settings}")
            for key, facts in contender.ask(do="check", batches=4).items():
                print(f"  {key}: {facts}")


def alone(args: argparse.Namespace, root: Path, *, cores: int, logs: Path) -> dict[str, Any]:
    """Return the answers of the measurements that take a process each: L7 and L8."""
    taken: dict[str, Any] = {}
    container = inputs.our_container(root, "jpg", logs / "inputs.log")
    if isinstance(container, str) or not {"L7", "L8"} & set(args.bars):
        return taken
    settings = {"container": str(container), "threads": cores, "lead": 0, "batch": BATCH}
    with Progress(STARTS + 2, label="memory and start", unit="processes") as progress:
        if "L8" in args.bars:
            starts = []
            for _ in range(STARTS + 1):
                starts.append(solo.measure("start", settings | {"batch": min(BATCH, args.count)},
                                           threads=cores, log=logs / "solo.log"))  # fmt: skip
                progress.advance()
            taken["first start"], taken["starts"] = starts[0], starts[1:]
        if "L7" in args.bars:
            # Six batches per epoch: every buffer of the loader is filled.
            large = settings | {"batch": min(MEMORY_BATCH, args.count // 6), "ahead": 3}
            taken["memory"] = solo.measure("memory", large, threads=cores, log=logs / "solo.log")
            progress.advance()
    return taken


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 0 even when a bar is missed: the table says so."""
    args = parse(argv)
    cores, logs = usable_cores(), args.out.parent / "logs"
    check_output(args.out, option="--out")
    logs.mkdir(parents=True, exist_ok=True)
    facts = machine_facts()
    root = inputs.image_set(BASE, count=args.count, data=args.data)
    names = report.needed(report.RATIOS, args.bars)
    made = plans(names, root, count=args.count, cores=cores, log=logs / "inputs.log")
    if args.check:
        check(made, cores=cores, logs=logs)
        return 0
    single = alone(args, root, cores=cores, logs=logs)
    rounds: dict[str, Any] = {}
    failed: dict[str, str] = {}
    if made:
        with Field(made, threads=cores, logs=logs, warm_s=1.0) as field:
            rounds = field.rounds(args.rounds, seconds=args.seconds_per_turn)
            failed = field.failed
    speeds = report.rates(rounds)
    rows = report.ratio_rows(speeds)
    rows += report.memory_rows(single["memory"]) if "memory" in single else []
    rows += report.start_rows(single["starts"]) if "starts" in single else []
    rows = sorted(rows, key=lambda row: row.bar)
    files = inputs.jpegs(root)
    kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
    print(f"\n{facts['cpu']}, {cores} cores; {len(files)} JPEGs of {kilobytes:.0f} kB, "
          f"{args.rounds} rounds of {args.seconds_per_turn:g} s a turn\n")  # fmt: skip
    if speeds:
        print(report.rate_table(speeds) + "\n")
    settings = {name: made[name] for name in rounds}
    conclude(args.out, rows, rounds, machine=facts, more={
        "input": {"set": root.name, "count": len(files), "mean_kB": kilobytes},
        "settings": {"rounds": args.rounds, "seconds_per_turn": args.seconds_per_turn,
                     "contenders": settings, "left_out": failed},
        "rates": speeds,
        "alone": single,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    run_main(main)
