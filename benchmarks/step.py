"""`make bench-step`: our training step against bare PyTorch and lightly, in interleaved rounds."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, step_loop
from benchmarks.process import machine_facts
from benchmarks.results import bars_among, conclude
from benchmarks.rounds import Contender, Field
from harl_fast.files import check_output
from harl_fast.host import usable_cores
from harl_fast.options import number, whole_number
from harl_fast.program import head, run_main

BARS = ("T1", "T2", "T3", "T4", "T5", "T6", "T7", "O1", "O2")
BASE = Path("data/bench")
BATCH = 64
"""ds_configs/cpu.json's."""
LIGHTLY = "pip install --no-deps lightly"
Plan = dict[str, Any]

RATIOS = (
    # A time over a time: how many times longer a step of the first takes.
    report.Ratio("T1", "step over a bare loop's", "bare", ("ours",), 1.03, 1.01, True),
    report.Ratio("T1", "  ZeRO 1 kept on one rank", "bare", ("ours_zero1",), None, None, True),
    report.Ratio("T2", "HARL step over BYOL step", "ours_byol", ("ours",), 1.06, 1.02, True),
    report.Ratio("T3", "over lightly's BYOL, fp32", "ours_byol", ("lightly",), 1.2, 1.8),
    report.Ratio("T3", "over lightly's BYOL, bf16", "ours_byol_bf16", ("lightly_bf16",), 1.2, 1.8),
    report.Ratio("T3", "  the same, lightly channels-last", "ours_byol_bf16", ("lightly_bf16_cl",)),
    report.Ratio("T3", "  `compile: true`, fp32", "ours_compiled", ("lightly",)),
    report.Ratio("T3", "  `compile: true`, bf16", "ours_compiled_bf16", ("lightly_bf16",)),
    report.Ratio("T4", "bf16 channels-last over fp32", "ours_bf16", ("ours_contiguous",), 1.3, 2.0),
    report.Ratio("T6", "multi-crop step over two views'", "ours", ("ours_multicrop",)),
    report.Ratio("T7", "step of two ranks over one's", "ours_one", ("ours_two",), 1.1, 1.05, True),
    report.Ratio("T7", "  two, each by itself", "ours_one", ("ours_apart",), None, None, True),
    report.Ratio("O1", "LARS step over lightly's", "lars_ours", ("lars_lightly",), 1.6, 2.5),
    report.Ratio("O1", "LARS step over solo-learn's", "lars_ours", ("lars_solo",), 1.6, 2.5),
    report.Ratio("O2", "EMA step over a loop's", "ema_ours", ("ema_loop",), 2.0, 2.3),
    report.Ratio("O2", "  over a loop in place", "ema_ours", ("ema_place",)),
    report.Ratio("O2", "  over lightly's", "ema_ours", ("ema_lightly",)),
)
FIELDS = (
    (
        "ours",
        "bare",
        "ours_zero1",
        "ours_byol",
        "ours_multicrop",
        "lightly",
        "ours_bf16",
        "ours_contiguous",
        "ours_compiled",
    ),
    ("ours_byol_bf16", "lightly_bf16", "lightly_bf16_cl", "ours_compiled_bf16"),
    ("ours_one", "ours_two", "ours_apart"),
    ("lars_ours", "lars_lightly", "lars_solo", "ema_ours", "ema_loop", "ema_place", "ema_lightly"),
)
"""Contenders that run in turns; each holds about 1.2 GB, so not all of them live at once."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    add = parser.add_argument
    seconds = number(0.1, 3600)
    add("--rounds", type=whole_number(1, 10**4), default=5, metavar="N", help="default %(default)s")
    add("--seconds-per-turn", type=seconds, default=4.0, metavar="S", help="default %(default)s")
    about = "bars to measure; default all"
    add("--only", dest="bars", type=bars_among(BARS), default=BARS, metavar="T1,O2", help=about)
    batch, cores = whole_number(2, 1 << 16), usable_cores()
    add("--batch", type=batch, default=BATCH, metavar="N", help="default %(default)s")
    add("--threads", type=whole_number(1, 1024), default=cores, help="default: all cores")
    add("--data", type=Path, metavar="FOLDER", help="photos for T5; default: sample photos")
    count, about = whole_number(100, 10**7), "pictures for T5; default %(default)s"
    add("--count", type=count, default=3200, metavar="N", help=about)
    window, about = whole_number(1, 10**6), "steps of each of T5's windows"
    add("--window", type=window, default=8, metavar="N", help=about)
    add("--out", type=Path, default=Path("runs/bench/step.json"), metavar="FILE")
    add("--check", action="store_true", help="compare what the contenders compute, time nothing")
    return parser.parse_args(argv)


with head(__name__, parse):
    from benchmarks import inputs, step_setup
    from harl_fast.plan.work import pretraining_work


def plans(bars: tuple[str, ...], *, batch: int, threads: int) -> dict[str, Plan]:
    """Return each needed contender's settings; without lightly its own are left out, and said."""
    common = {"steps": True, "threads": threads, "environment": {"OMP_NUM_THREADS": str(threads)}}
    step: Plan = common | {
        "batch": batch,
        "lead": 1,
        "loss": "byol+f_loss",
        "precision": "fp32",
        "channels_last": True,
    }
    ours, bare, lightly = ({"module": f"step_{name}"} for name in ("ours", "bare", "lightly"))
    byol, bf16, contiguous = {"loss": "byol"}, {"precision": "bf16"}, {"channels_last": False}
    one = {"threads": 1, "environment": {"OMP_NUM_THREADS": "1"}}
    alone = common | {"module": "step_optim", "lead": 3}
    known: dict[str, Plan] = {
        "ours": step | ours,
        "bare": step | bare,
        "ours_byol": step | ours | byol,
        "lightly": step | lightly | byol | contiguous,
        "ours_multicrop": step | ours | {"sizes": step_setup.MULTICROP},
        "ours_zero1": step | ours | {"keep_stage": True},
        "ours_one": step | ours | one,
        "ours_two": step | ours | one | {"ranks": 2},
        "ours_apart": step | ours | one | {"ranks": 2, "apart": True},
        "ours_bf16": step | ours | bf16,
        "ours_contiguous": step | ours | contiguous,
        "ours_byol_bf16": step | ours | byol | bf16,
        "ours_compiled": step | ours | byol | {"compile": True},
        "ours_compiled_bf16": step | ours | byol | bf16 | {"compile": True},
        "lightly_bf16": step | lightly | byol | bf16 | contiguous,
        "lightly_bf16_cl": step | lightly | byol | bf16,
    }
    for what, names in {"lars": ("ours", "lightly", "solo"),
                        "ema": ("ours", "loop", "place", "lightly")}.items():  # fmt: skip
        known |= {f"{what}_{name}": alone | {"what": what, "name": name} for name in names}
    needed = report.needed(RATIOS, bars)
    made = {name: settings for name, settings in known.items() if name in needed}
    if importlib.util.find_spec("lightly") is None:
        left = [name for name in made if "lightly" in name]
        print(f"note: {', '.join(left)} left out: lightly is not installed; `{LIGHTLY}`")
        made = {name: settings for name, settings in made.items() if name not in left}
    return made


def check(made: dict[str, Plan], *, logs: Path) -> None:
    """Print the first steps' figures: contenders of the same operations must agree."""
    keep = ("loss", "loss/whole", "loss/fg", "norm", "parameters")
    for name, settings in made.items():
        contender = Contender(
            name, settings | {"watched": True}, threads=1, log=logs / f"{name}.log"
        )
        try:
            found = contender.ask(do="check", batches=3)["figures"]
        finally:
            contender.close()
        rows = [{k: round(v, 5) for k, v in figures.items() if k in keep} for figures in found]
        print(f"{name:<18}{rows}", flush=True)


def rows_of(rounds: report.Rounds, bars: tuple[str, ...]) -> list[report.Row]:
    """Return the lines of all ratios whose contenders took part, each taken within its round."""
    return report.ratio_rows(report.rates(rounds), [ratio for ratio in RATIOS if ratio.bar in bars])


def crop_rows(speeds: Mapping[str, Sequence[float]]) -> list[report.Row]:
    """Return T6's line: a multi-crop step's time over that of two views, per FLOP."""
    if not (speeds.get("ours") and speeds.get("ours_multicrop")):
        return []
    many, two = (
        pretraining_work(step_setup.run_config("byol+f_loss", sizes=s), s, half=False).flops
        for s in (step_setup.MULTICROP, step_setup.PAIR)
    )
    turns = zip(speeds["ours"], speeds["ours_multicrop"], strict=True)
    found = report.spread([pair / multicrop * two / many for pair, multicrop in turns])
    what = f"  over its FLOP, {many / two:.2f} x"
    return [report.Row("T6", what, found.median, "x", 1.15, 1.05, found, less_is_better=True)]


def wait_rows(windows: list[dict[str, float]]) -> list[report.Row]:
    """Return T5's line from the meter's windows, as percent of the time."""
    found = report.spread([100.0 * w["wait_s"] / w["elapsed_s"] for w in windows])
    return [
        report.Row("T5", "waits for data, 96 px", found.median, "%", 2.0, 0.5, found,
                   less_is_better=True)
    ]  # fmt: skip


def waits(args: argparse.Namespace, *, logs: Path) -> list[dict[str, float]]:
    """Return T5's windows of a real run, or nothing, and say so, without a container."""
    root = inputs.image_set(BASE, count=args.count, data=args.data)
    container = inputs.our_container(root, "jpg", logs / "inputs.log")
    if isinstance(container, str):
        print(f"note: T5 is left out: {container}", flush=True)
        return []
    print("the loop with the real loader", flush=True)
    settings = {"data": str(container.parent), "threads": args.threads, "batch": args.batch}
    settings |= {"warm": 3, "window": args.window, "windows": max(5, args.rounds)}
    windows: list[dict[str, float]] = step_loop.measure(settings, log=logs / "loop.log")["windows"]
    return windows


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 0 even when a bar is missed, for the table says so."""
    args = parse(argv)
    logs = args.out.parent / "logs"
    check_output(args.out, option="--out")
    logs.mkdir(parents=True, exist_ok=True)
    facts = machine_facts()
    made = plans(args.bars, batch=args.batch, threads=args.threads)
    if args.check:
        check(made, logs=logs)
        return 0
    rounds: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for names in FIELDS:
        part = {name: made[name] for name in names if name in made}
        if part:
            with Field(part, threads=1, logs=logs, warm_s=1.0) as field:
                rounds |= field.rounds(args.rounds, seconds=args.seconds_per_turn)
                failed |= field.failed
    windows = waits(args, logs=logs) if "T5" in args.bars else []
    speeds = report.rates(rounds)
    rows = rows_of(rounds, args.bars) + (wait_rows(windows) if windows else [])
    rows += crop_rows(speeds) if "T6" in args.bars else []
    rows.sort(key=lambda row: BARS.index(row.bar))
    print(
        f"\n{facts['cpu']}, {args.threads} threads; ResNet-18 at {step_setup.PAIR[0]} px, "
        f"batch {args.batch}; {args.rounds} rounds of {args.seconds_per_turn:g} s a turn\n"
    )
    print(report.rate_table(speeds) + "\n")
    conclude(args.out, rows, rounds, machine=facts, more={
        "settings": {"rounds": args.rounds, "seconds_per_turn": args.seconds_per_turn,
                     "batch": args.batch, "threads": args.threads, "contenders": made,
                     "left_out": failed},
        "rates": speeds,
        "waits": windows,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    run_main(main)
