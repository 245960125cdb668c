"""Do masks pay? All experiments and what they found: `python launch/evidence.py --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.errors import ConfigError, one_line
from harl_fast.files import check_output
from harl_fast.lock import lock_beside, locked
from harl_fast.options import Parser, whole_number
from harl_fast.runfiles import check_apart
from harl_fast.steps import ROOT

PAGE = Path("docs/evidence.md")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Train all arms of experiments/ on photos and on drawn composites, judge their "
        "frozen features, write what was found. Stopped, the same command goes on."
    )
    add = parser.add_argument
    about = "photos with train/ and val/, such as Caltech-101; without, composites alone"
    add("--data", type=Path, metavar="FOLDER", help=about)
    add("--quick", action="store_true", help="every step at small size; the figures mean nothing")
    about = "suites and arms, such as photos or composites/exact (all)"
    add("--only", nargs="+", default=[], metavar="NAME", help=about)
    count = whole_number(1, 1000)
    add("--seeds", type=count, metavar="N", help="trainings of each arm (the suites')")
    add("--epochs", type=whole_number(1, 10**6), metavar="N", help="of each (the suites')")
    add("--out", type=Path, help="all that is made (runs/evidence, or runs/evidence-quick)")
    add("--page", type=Path, help=f"what was found ({PAGE}; with --quick: in --out)")
    args = parser.parse_args(argv)
    args.out = ROOT / (args.out or Path("runs") / f"evidence{'-quick' * args.quick}")
    args.page = ROOT / (args.page or (args.out / PAGE.name if args.quick else PAGE))
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    # Imported late: torch takes seconds, which --help and usage errors need not wait for.
    from harl_fast.tools.charts import check_extra
    from harl_fast.tools.evidence import Evidence, check_data, check_masks, run_all, settle
    from harl_fast.tools.evidence_arms import chosen, load_plan
    from harl_fast.tools.evidence_report import check_claims, write_page

    check_extra()
    plan = load_plan(ROOT / "experiments", quick=args.quick, seeds=args.seeds, epochs=args.epochs)
    check_claims(plan)
    todo = chosen(plan.trials, args.only)
    check_data(args.data)
    check_output(args.out, option="--out", folder=True)
    check_output(args.page, option="--page", suffix=".md")
    check_apart(args.page, option="--page")
    with locked(lock_beside(args.out), output=args.out):
        settings = settle(args.out, photos=args.data)
        evidence = Evidence(args.out, settings, quick=args.quick)
        if settings.photos is None and any(trial.kind == "photos" for trial in todo):
            todo = [trial for trial in todo if trial.kind != "photos"]
            if not todo:
                raise ConfigError("--only names photos: give their folder, --data or DATA=")
            print("photos are left out: give their folder, --data or DATA=")

        def report() -> None:
            write_page(args.page, plan, evidence.finished(plan.trials), quick=args.quick)

        done = evidence.finished(todo)
        check_masks([trial for trial in todo if trial not in done])
        report()
        run_all(evidence, todo, after=report)
    print(one_line(f"results: {args.out / 'results'}; what was found: {args.page}"))
    return 0


if __name__ == "__main__":
    harl_fast.program.run_main(main)
