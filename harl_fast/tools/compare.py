"""Put results side by side: `python -m harl_fast.tools.compare --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.errors import one_line
from harl_fast.files import check_output
from harl_fast.lock import FOLDER_LOCK, locked
from harl_fast.options import SEED_MAX, Parser, whole_number


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m harl_fast.tools.compare",
        description="Write DIR/report.html, which needs no other file, and DIR/report.md: all "
        "results with their intervals, the paired difference of each to the first, the classes won "
        "and lost, and learning curves. Folders of --seeds runs are paired by seed.",
    )
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULT|RUN|SEEDS",
        help="folders RUN/eval/<data>-<protocol>, or runs: each stands for its result of the "
        "data and protocol that all have; or folders of runs of the same seeds",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--force",
        action="store_true",
        help="compare results of other data, size or protocol as well; the report is marked",
    )
    parser.add_argument(
        "--curve",
        type=Path,
        metavar="DATA",
        help="folder of the results' containers: judge every kept checkpoint of the runs by k-NN",
    )
    seed = whole_number(0, SEED_MAX)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the bootstrap (0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compare; return the exit code."""
    args = parse(argv)
    # Imported late: torch takes seconds, which --help and usage errors need not wait for.
    from harl_fast.tools.charts import check_extra
    from harl_fast.tools.curves import find_curves
    from harl_fast.tools.report import accuracy_table, write_report
    from harl_fast.tools.seeds import compare_any

    check_extra()
    check_output(args.out, option="--out", folder=True)
    comparison = compare_any(args.results, force=args.force, seed=args.seed)
    curves = find_curves(comparison, data=args.curve)
    with locked(args.out / FOLDER_LOCK, output=args.out):
        write_report(args.out, comparison, curves)
    for warning in comparison.warnings:
        print(one_line(f"warning: not comparable: {warning}"))
    print(accuracy_table(comparison))
    print(one_line(f"report: {args.out / 'report.html'}"))
    return 0


if __name__ == "__main__":
    harl_fast.program.run_main(main)
