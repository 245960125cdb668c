"""Fine-tune a pretrained network with labels: `deepspeed launch/finetune.py --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast import finetuning as own
from harl_fast.engine.arguments import training_parser
from harl_fast.eval.options import input_options
from harl_fast.files import to_stderr
from harl_fast.options import whole_number

EXAMPLES = """\
examples:
  python launch/finetune.py --deepspeed_config ds_configs/cpu.json --preset semi-10pct \\
      --ckpt runs/x --data data/caltech101 --subset 10% --train-batch-size 64 --run runs/x-10
  deepspeed launch/finetune.py --deepspeed_config ds_configs/a100x8.json --preset full ...
  ... --run runs/x-10 --resume                       continue after a stop
  ... --fine_tune_after_block=4 --zero_init_logits_layer=True     SimCLR's spelling works, too
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = training_parser(
        about="Fine-tune a pretrained network, or train heads on it, and evaluate it.",
        epilog=EXAMPLES,
    )
    add, words = parser.add_argument, own.normalised(sys.argv[1:] if argv is None else argv)
    add("--preset", metavar="NAME|YAML", help=f"{', '.join(own.presets())}, or a file")
    about, goes_on = "pretrained network: run folder or file", {"--resume", "--mode=eval", "eval"}
    add("--ckpt", "--checkpoint", type=Path, required=goes_on.isdisjoint(words), help=about)
    about = "holds containers of train and val"
    add("--data", "--data-dir", type=Path, required=True, metavar="FOLDER", help=about)
    about = "where all output goes"
    add("--run", "--model-dir", type=Path, required=True, metavar="FOLDER", help=about)
    add("--resume", action="store_true", help="continue the run in --run")
    add("--mode", choices=["train_then_eval", "train", "eval"], default="train_then_eval")
    add("--train-mode", choices=["finetune"], default="finetune", help=argparse.SUPPRESS)
    about = "repeat with N seeds and report mean and deviation"
    add("--seeds", type=whole_number(1, 1000), default=1, metavar="N", help=about)
    inputs = input_options()  # as wherever else there is a --ckpt
    for flag, settings in own.flag_options().items():
        add(*([flag, "--size-px"] if flag == "--image-size" else [flag]), **settings)
    for flag in ("--mean", "--std"):
        add(flag, **inputs[flag])
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key")
    text, key = "train without a set's broken containers", "data.skip_broken=true"
    add("--skip-broken", dest="set", action="append_const", const=key, help=text)
    return parser.parse_args(words)


def main(argv: list[str] | None = None) -> int:
    """Parse and train; return the exit code."""
    args = vars(parse(argv))
    flags = {key: args[f"flag:{key}"] for key in own.flag_keys()}
    if (note := own.left_aside(args)) and os.environ.get("RANK", "0") == "0":
        to_stderr(note)
    # Imported late: torch and FFCV take seconds, which --help and usage errors need not wait for.
    from harl_fast.engine.finetune import finetune

    return finetune(
        engine_file=args["deepspeed_config"],
        engine_overrides=args["engine_set"],
        flags={key: value for key, value in flags.items() if value is not None},
        overrides=[*args["set"], *own.reading({key: args[key] for key in ("mean", "std")})],
        network=own.network_asked(args),
        time_limit_s=args["time_limit"],
        **{k: args[k] for k in ("preset", "ckpt", "data", "run", "resume", "mode", "seeds")},
        **{k: args[k] for k in ("allow_change", "quiet", "stage_to")},
    )


if __name__ == "__main__":
    harl_fast.program.run_main(main)
