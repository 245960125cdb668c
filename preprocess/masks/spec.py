"""Texts that name a mask method, ``name:argument,key=value,...``, parsed and checked.

A value that itself holds commas stands in parentheses, as a base with two parameters does:
``shuffled:base=(heuristic:rounds=2,sigma=1),seed=3``. Triples are joined by slashes.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harl_fast.errors import ConfigError, nearest, one_line, shown
from harl_fast.options import to_float, to_int


@dataclass(frozen=True)
class MethodSpec:
    """A mask method with all its parameters: hashable, picklable, and text again by ``str()``."""

    name: str
    parameters: tuple[tuple[str, Any], ...]
    """Every parameter with its resolved value: numbers, texts, tuples of numbers, or a
    `MethodSpec`."""
    text: str
    """The canonical text: parameters at their defaults are left out."""

    def __str__(self) -> str:
        return self.text

    def __getitem__(self, key: str) -> Any:
        """Return a parameter's value."""
        return dict(self.parameters)[key]


@dataclass(frozen=True)
class Parameter:
    """What one parameter of a method may be."""

    kind: type
    """int, float, bool, str, tuple (of numbers) or `MethodSpec`."""
    default: Any = None
    """None: it must be given, and its key may be left out if it comes first."""
    low: float = -math.inf
    high: float = math.inf
    """Range of a number, which is finite in any case."""
    choices: tuple[str, ...] = ()


Parameters = Mapping[str, Parameter]


LONGEST = 2000
"""Most characters of a method's text; a longer one has parentheses within parentheses."""


def keyword_parameters(function: Callable[..., Any], *, high: Mapping[str, float]) -> Parameters:
    """Return the parameters that a function's keyword-only arguments stand for; numbers from 0 up.

    high: the largest value of each number. An argument without a default must be given.
    """
    hints = typing.get_type_hints(function)
    found = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        bare = argument.default is inspect.Parameter.empty
        default = None if bare else argument.default
        kind = hints[name] if default is None else type(default)
        found[name] = Parameter(kind, default, low=0, high=high.get(name, math.inf))
    return found


def parse(text: str, table: Mapping[str, Parameters]) -> MethodSpec:
    """Return the method that a text names; `ConfigError` names what is wrong and the nearest.

    table: the parameters of every known method, in the order of the canonical text.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"mask method {shown(text)} has {len(text):,} characters, over {LONGEST}")
    name, _, rest = text.strip().partition(":")
    if name not in table:
        raise ConfigError(
            f"mask method {shown(text)}: there is no {shown(name)}{nearest(name, table)} "
            f"(known: {', '.join(table)})"
        )
    parameters = table[name]
    given = dict(_arguments(text, rest, parameters))
    values: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key in given:
            values[key] = _value(text, key, given[key], parameter, table)
        elif parameter.default is None:
            raise ConfigError(
                f"mask method {shown(text)} lacks its {key}: write {name}:{key.upper()}"
            )
        elif parameter.kind is MethodSpec:
            values[key] = parse(parameter.default, table)
        else:
            values[key] = parameter.default
    return MethodSpec(name, tuple(values.items()), _text(name, values, parameters))


def _arguments(text: str, rest: str, parameters: Parameters) -> Iterator[tuple[str, str]]:
    unnamed = next((key for key, value in parameters.items() if value.default is None), None)
    for place, word in enumerate(_words(text, rest)):
        key, mark, value = word.partition("=")
        if place == 0 and unnamed and (not mark or key not in parameters):
            key, value = unnamed, word
        elif not mark or key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ConfigError(
                f"mask method {shown(text)}: no parameter {shown(key)}{nearest(key, parameters)} "
                f"(known: {known}); write key=value"
            )
        if value.startswith("(") and value.endswith(")"):
            value = value[1:-1]
        yield key, value


def _words(text: str, rest: str) -> list[str]:
    """Return the parts of a text between the commas that are outside parentheses."""
    words, depth, start = [], 0, 0
    for place, sign in enumerate(rest):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            words.append(rest[start:place])
            start = place + 1
        if depth < 0:
            break
    if depth:
        raise ConfigError(f"mask method {shown(text)}: parentheses do not match")
    return [*words, rest[start:]] if rest else []


def _value(
    text: str, key: str, word: str, parameter: Parameter, table: Mapping[str, Parameters]
) -> Any:
    if parameter.kind is MethodSpec:
        return parse(word, table)
    where = f"mask method {shown(text)}: {key}={one_line(word[:80])}"
    try:
        if parameter.kind is bool:
            value: Any = {"0": False, "1": True}[word]
        elif parameter.kind is tuple:
            value = tuple(map(to_float, word.split("/")))
        else:
            value = {int: to_int, float: to_float}.get(parameter.kind, str)(word)
    except (ValueError, KeyError):
        kinds = {int: "whole number", float: "number", bool: "0 or 1", tuple: "a/b/c of numbers"}
        raise ConfigError(f"{where} is not the {kinds[parameter.kind]} that is needed") from None
    if parameter.choices and value not in parameter.choices:
        raise ConfigError(f"{where} is none of {', '.join(parameter.choices)}")
    numbers = value if isinstance(value, tuple) else (value,)
    if any(not isinstance(n, str) and not _fits(n, parameter) for n in numbers):
        raise ConfigError(f"{where} is not from {parameter.low:g} to {parameter.high:g}")
    return value


def _fits(number: float, parameter: Parameter) -> bool:
    return math.isfinite(number) and parameter.low <= number <= parameter.high


def _text(name: str, values: Mapping[str, Any], parameters: Parameters) -> str:
    words = []
    for key, value in values.items():
        parameter = parameters[key]
        word = _word(value)
        if "," in word:
            word = f"({word})"
        if parameter.default is None:
            words.append(word if not words else f"{key}={word}")
        elif word != _word(parameter.default):
            words.append(f"{key}={word}")
    return ":".join([name, ",".join(words)]) if words else name


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(_word(part) for part in value)
    if isinstance(value, bool):
        return str(int(value))
    return f"{value!r}" if isinstance(value, float) else str(value)
