"""Pretrain: `deepspeed launch/pretrain.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.config import presets
from harl_fast.engine.arguments import training_parser
from harl_fast.options import whole_number

EXAMPLES = """\
examples:
  python launch/pretrain.py --deepspeed_config ds_configs/cpu.json --config demo \\
      --data data/demo --run runs/demo
  deepspeed launch/pretrain.py --deepspeed_config ds_configs/a100x8.json --config paper ...
  ... --run runs/paper --resume                      continue after a stop
  ... --run runs/new --init-from runs/paper          new run from another's weights
  ... --set optim.lr=0.3 --set data.workers=8        change the method's keys
  ... --engine-set zero_optimization.stage=0         change the DeepSpeed file's keys
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = training_parser(
        about="Pretrain a network by HARL on one or more devices.",
        epilog=EXAMPLES,
    )
    add, words = parser.add_argument, sys.argv[1:] if argv is None else argv
    about, needed = f"method: {', '.join(presets())}, or a file", "--resume" not in words
    add("--config", required=needed, metavar="NAME|YAML", help=about)
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override in it")
    add("--epochs", type=whole_number(1, 10**6), metavar="N", help="--set epochs=N; extends a run")
    add("--data", type=Path, required=True, metavar="FOLDER", help="holds train.beton or train/")
    add("--run", type=Path, required=True, metavar="FOLDER", help="where all output goes")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue the run in --run")
    start.add_argument("--init-from", type=Path, metavar="CKPT", help="weights to start from")
    text, key = "train without a set's broken containers", "data.skip_broken=true"
    add("--skip-broken", dest="set", action="append_const", const=key, help=text)
    return parser.parse_args(words)


def main(argv: list[str] | None = None) -> int:
    """Parse and train; return the exit code."""
    args = parse(argv)
    # Imported late: torch and FFCV take seconds, which --help and usage errors need not wait for.
    from harl_fast.engine.pretrain import pretrain
    from harl_fast.viz import contact_sheet

    epochs = [f"epochs={args.epochs}"] if args.epochs is not None else []
    return pretrain(
        engine_file=args.deepspeed_config,
        engine_overrides=args.engine_set,
        config_name=args.config,
        config_overrides=[*args.set, *epochs],
        data=args.data,
        stage_to=args.stage_to,
        run=args.run,
        resume=args.resume,
        init_from=args.init_from,
        allow_change=args.allow_change,
        quiet=args.quiet,
        sheet=contact_sheet,
        time_limit_s=args.time_limit,
    )


if __name__ == "__main__":
    harl_fast.program.run_main(main)
