"""What the programs share: checked values of the command line, and the error of writing."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from harl_fast.errors import ConfigError, DataError
from preprocess.masks.methods import parse_spec
from preprocess.masks.spec import MethodSpec
from preprocess.reading import GreyRange, Reading, parse_range


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from low to high."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return read


def mask_method(text: str) -> MethodSpec:
    """Read a mask method, see `parse_spec`; an argparse type."""
    try:
        return parse_spec(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how files are read, see `reading_of`."""
    parser.add_argument(
        "--range",
        type=_grey_range,
        default=GreyRange(),
        metavar="RANGE",
        help="which values of greys of over 8 bits are black and white: full (of the file's type), "
        "minmax (of each image) or LOW:HIGH; default full",
    )
    parser.add_argument(
        "--icc",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="convert embedded colour profiles to sRGB; default --icc",
    )


def reading_of(args: argparse.Namespace) -> Reading:
    """Return how the command line asks for files to be read."""
    return Reading(args.range, args.icc)


def _grey_range(text: str) -> GreyRange:
    try:
        return parse_range(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextlib.contextmanager
def writing(out: Path, *, again: str = "run the command again") -> Iterator[None]:
    """Turn an `OSError` of the work inside into a `DataError` about ``out``, with what to do."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"writing {out} failed: {error.strerror or error}{place}. Check free space and rights "
            f"there, and {again}"
        ) from error
