"""Checked values of command lines, as types of argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from harl_fast.errors import shown

SEED_MAX = 2**31 - 1
"""Largest seed; every generator behind the project takes it."""


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
