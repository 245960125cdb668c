"""Refuses mask methods that no conversion could use: `python -m preprocess.masks.check --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harl_fast.errors import DataError, HarlError, one_line
from harl_fast.options import Parser
from harl_fast.program import head, run_main


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m preprocess.masks.check",
        description="Open mask methods as a conversion would, and make no masks: what is misspelt, "
        "missing or not installed is told before work that needs them only later.",
        epilog="Exit code: 0 all can be used, 2 one cannot.",
    )
    add = parser.add_argument
    about = "a method as for the conversion, and what messages call it"
    add("--method", nargs=2, action="append", required=True, metavar=("NAME", "METHOD"), help=about)
    about = "a name of files and folders that are made later, and are not looked for"
    add("--later", action="append", default=[], metavar="NAME", help=about)
    return parser.parse_args(argv)


with head(__name__, parse):
    from harl_fast.jit import require_compiler
    from preprocess.masks.registry import parse_spec, try_method
    from preprocess.masks.sources import check_tree


def main(argv: list[str] | None = None) -> int:
    """Try all methods; return the exit code, or raise `HarlError` for one that does not work."""
    args = parse(argv)
    require_compiler()
    for name, method in args.method:
        try:
            _check(method, later=args.later)
        except HarlError as error:
            raise DataError(f"{one_line(name)}: {error}") from error
    return 0


def _check(method: str, *, later: list[str]) -> None:
    spec = parse_spec(method)
    while spec.base is not None:
        spec = spec.base
    if {"file", "folder"} & {key for key, value in spec.parameters if value in later}:
        return
    if spec.name == "png":
        check_tree(Path(spec["folder"]))
    else:
        try_method(spec)


if __name__ == "__main__":
    run_main(main)
