"""Checked values of command lines, as types of argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from harl_fast.errors import HarlError, shown

Value = TypeVar("Value")

SEED_MAX = 2**31 - 1
"""Largest seed; every generator behind the project takes it."""


def checked(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return an argparse type that tells why ``read`` refuses a text.

    argparse itself drops what a ValueError says.
    """

    def tell(text: str) -> Value:
        try:
            return read(text)
        except (ValueError, HarlError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return tell


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from low to high."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{shown(value)} is not from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type: a finite number from low to high."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is no number") from None
        if not low <= value <= high:  # also true for NaN
            raise argparse.ArgumentTypeError(f"{shown(value)} is not from {low:g} to {high:g}")
        return value

    return read
