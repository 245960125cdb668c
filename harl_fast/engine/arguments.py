"""Options of all programs that train under the engine."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.engine.stop import parse_duration
from harl_fast.options import Parser, checked, whole_number


def training_parser(*, about: str, epilog: str) -> argparse.ArgumentParser:
    """Return a parser of the engine's options, and of those of a run that is stopped and resumed.

    about: what the program does. epilog: its examples, printed as they are.
    """
    parser = Parser(
        allow_abbrev=False,  # launch/guard.py looks for --run
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--deepspeed_config", type=Path, required=True, metavar="JSON", help="engine file")
    add("--engine-set", action="append", default=[], metavar="KEY=VALUE", help="override in it")
    text = "let --resume continue with another value of it (repeatable)"
    add("--allow-change", action="append", default=[], metavar="KEY", help=text)
    text = "copy the containers to this folder first, once per machine, and train on the copies"
    add("--stage-to", type=Path, metavar="FOLDER", help=text)
    add("--quiet", action="store_true", help="print warnings and one line per epoch only")
    text = "save and end with exit code 0 before this process is so old"
    add("--time-limit", type=checked(parse_duration), metavar="HH:MM:SS|MINUTES", help=text)
    add("--local_rank", type=whole_number(-1, 10**6), default=0, help=argparse.SUPPRESS)
    return parser
