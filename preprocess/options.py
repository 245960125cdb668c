"""Checked values of the command line that the programs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from harl_fast.errors import ConfigError
from preprocess.masks.methods import parse_spec
from preprocess.masks.spec import MethodSpec


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
