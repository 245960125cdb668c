"""Checked values in text: numbers in plain writing, crop rules, and types of argparse."""

from __future__ import annotations

import argparse
import contextlib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from harl_fast.errors import ConfigError, HarlError, one_line, shown
from harl_fast.files import local_path

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)

SEED_MAX = 2**31 - 1
"""Largest seed; every generator behind the project takes it."""
_INT = re.compile(r"[-+]?[0-9]{1,4000}")  # Python reads no more than 4300 digits
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|-?(nan|inf)")


class Parser(argparse.ArgumentParser):
    """Names all that is wrong with a command line in one error: lacking, unknown and bad words.

    A URL is no `Path`: it would be a folder of that name, such as ``s3:``.
    """

    _wrong: list[str] | None = None
    """What is wrong with values, while they are looked at for the first time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, checked(local_path))
        self._negative_number_matcher = re.compile(r"-\.?[0-9]")  # -1024:3071 is a value, too

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the values and the unknown words, as argparse does; it names these by itself."""
        needed = [action for action in self._actions if action.required]
        groups = [group for group in self._mutually_exclusive_groups if group.required]
        relaxed: list[Any] = [*needed, *groups]
        wrong = self._wrong = []
        for each in relaxed:
            each.required = False
        try:
            found, unknown = super().parse_known_args(args)
        finally:
            self._wrong = None
            for each in relaxed:
                each.required = True
        missing = [
            "/".join(action.option_strings) or str(action.metavar or action.dest)
            for action in needed
            if getattr(found, action.dest, None) is None
        ]
        for members in (group._group_actions for group in groups):
            if all(getattr(found, each.dest, None) == each.default for each in members):
                missing.append("one of " + " ".join("/".join(a.option_strings) for a in members))
        if missing:
            wrong.insert(0, f"the following arguments are required: {', '.join(missing)}")
        if wrong:
            if unknown:
                wrong.append(f"unrecognized arguments: {' '.join(map(one_line, unknown))}")
            self.error("; ".join(wrong))
        return super().parse_known_args(args, namespace)

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        if self._wrong is None:
            return super()._get_value(action, text)
        if text is action.default:  # some of those import what takes seconds
            return text
        with self._noting(self._wrong):
            return super()._get_value(action, text)
        return text

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        with contextlib.nullcontext() if self._wrong is None else self._noting(self._wrong):
            super()._check_value(action, value)

    @staticmethod
    @contextlib.contextmanager
    def _noting(wrong: list[str]) -> Iterator[None]:
        try:
            yield
        except argparse.ArgumentError as error:
            wrong.append(str(error))


def to_int(text: str) -> int:
    """Return a whole number; ValueError also for what else Python reads: 1_0, ' 1 ', other digits.

    No other program reads those, and a typing mistake is likelier.
    """
    if not _INT.fullmatch(text):
        raise ValueError(f"{shown(text)} is no whole number")
    return int(text)


def to_float(text: str) -> float:
    """Return a number, as `to_int` does; nan and inf are such: it is for a range to refuse them."""
    if not _FLOAT.fullmatch(text):
        raise ValueError(f"{shown(text)} is no number")
    return float(text)


def checked(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return an argparse type that tells why ``read`` refuses a text.

    argparse itself drops what a ValueError says.
    """

    def parse(text: str) -> Value:
        try:
            return read(text)
        except (ValueError, HarlError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def refuse_given(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str], *, why: str
) -> None:
    """End the program by a usage error if one of some options is given, but for its default value.

    names: as argparse stores them. why: what such an option belongs to.
    """
    actions = {action.dest: action for action in parser._actions}
    for name in names:
        default, read = actions[name].default, actions[name].type
        if isinstance(default, str) and callable(read):
            default = read(default)  # as argparse does
        if getattr(args, name) != default:
            parser.error(f"argument {actions[name].option_strings[0]}: {why}")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from low to high."""
    return checked(lambda text: _within(to_int(text), low, high, f"{low} to {high}"))


def number(low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type: a finite number from low to high."""
    return checked(lambda text: _within(to_float(text), low, high, f"{low:g} to {high:g}"))


def whole_numbers(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    """Return an argparse type: whole numbers with commas between, as ``10,20,50``."""
    bounds = f"{low} to {high}"
    return checked(
        lambda text: tuple(_within(to_int(each), low, high, bounds) for each in text.split(","))
    )


def per_channel(low: float, high: float) -> Callable[[str], tuple[float, ...]]:
    """Return an argparse type: a number per channel with commas between, as ``0.5,0.5,0.5``."""
    return checked(
        lambda text: tuple(
            _within(to_float(each), low, high, f"{low:g} to {high:g}") for each in text.split(",")
        )
    )


def _within(value: Number, low: float, high: float, bounds: str) -> Number:
    if not low <= value <= high:  # also true for NaN
        raise ValueError(f"{shown(value)} is not from {bounds}")
    return value


def check_whole(least: int, most: float = math.inf, **arguments: Any) -> None:
    """Raise ConfigError for the first argument that is no whole number from least to most.

    For functions of the library, whose callers may give 32.0, or True; NumPy's integers pass.
    """
    bounds = f"{least} on" if most == math.inf else f"{least} to {most}"
    for name, value in arguments.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (whole and least <= value <= most):
            raise ConfigError(f"{name} {shown(value)}: give a whole number from {bounds}")


def check_finite(most: float, **arguments: Any) -> None:
    """Raise ConfigError for the first argument that is no finite number from 0 to most.

    For functions of the library, as `check_whole`.
    """
    bounds = "0 on" if most == math.inf else f"0 to {most:g}"
    for name, value in arguments.items():
        try:
            good = 0.0 <= value <= most and math.isfinite(value)
        except TypeError:  # such as of a text
            good = False
        if not good:
            raise ConfigError(f"{name} {shown(value)}: give a finite number from {bounds}")


def crop_rule(text: str) -> tuple[str, float]:
    """Return a crop's kind (random, foreground, center-on-foreground, background) and threshold.

    text: "random", "center-on-foreground" or "background", whose threshold is 0, or
    "foreground>=T" with T in (0, 1]. Raises ValueError for anything else.
    """
    if text in ("random", "center-on-foreground", "background"):
        return text, 0.0
    kind, mark, number = text.partition(">=")
    try:
        threshold = to_float(number.strip())
    except ValueError:
        threshold = 0.0
    if kind.strip() != "foreground" or not mark or not 0.0 < threshold <= 1.0:
        raise ValueError(
            f"crop {shown(text)} is none of random, foreground>=T with T above 0 and up to 1, "
            f"center-on-foreground, background"
        )
    return "foreground", threshold
