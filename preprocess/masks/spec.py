"""Texts that name a mask method: YAML, as ``{heuristic: {rounds: 2}}``, or ``heuristic`` alone.

A single value stands for the parameter without a default: ``{selftrained: masks.safetensors}``.
The older form ``name:value,key=value,...``, with inner commas in parentheses, is read as well.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BeforeValidator, create_model

from harl_fast.errors import ConfigError, shown
from harl_fast.section import Section, validated
from harl_fast.textfile import dump_yaml, parse_yaml

LONGEST = 2000
"""Most characters of a method's text."""


def _numbers(given: Any) -> Any:
    if isinstance(given, str):
        return given.split("/")
    return [given] if isinstance(given, int | float) else given


NUMBERS = BeforeValidator(_numbers)
"""For a tuple of numbers: also reads a single one, and the older form, joined by slashes."""


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

    @property
    def base(self) -> MethodSpec | None:
        """The method whose masks it changes; functions from outside may call other things so."""
        found = dict(self.parameters).get("base")
        return found if isinstance(found, MethodSpec) else None

    @property
    def file(self) -> str | None:
        """The file that its masks depend on."""
        found = dict(self.parameters).get("file")
        return found if isinstance(found, str) else None

    def __getitem__(self, key: str) -> Any:
        """Return a parameter's value."""
        return dict(self.parameters)[key]


class NoParameters(Section):
    """Of a method that has none."""


BASE: Any = "heuristic"
"""Whose masks a method changes if it is not told; `parse` makes a `MethodSpec` of it."""


def parameters_of(function: Callable[..., Any]) -> type[Section]:
    """Return the section that a function's keyword-only arguments stand for.

    An argument without a default must be given; ``Annotated[float, Field(ge=0, le=9)]`` sets a
    range, as in any pydantic model.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (
            hints.get(name, Any),
            ... if argument.default is argument.empty else argument.default,
        )
        for name, argument in inspect.signature(function).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY
    }
    return create_model(function.__name__, __base__=Section, **fields)


def parse(text: str, parameters: Callable[[str], type[Section]]) -> MethodSpec:
    """Return the method that a text names; raises `ConfigError` for mistakes.

    parameters: gives a method's section by its name, or raises `ConfigError`.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"mask method {shown(text)} has {len(text):,} characters, over {LONGEST}")
    where = f"mask method {shown(text)}"
    tree = parse_yaml(text, where=where) if text.lstrip().startswith("{") else text.strip()
    return _resolved(tree, parameters, where=where)


def _resolved(tree: Any, parameters: Callable[[str], type[Section]], *, where: str) -> MethodSpec:
    """Return the method of a YAML tree, or of a text in the older form."""
    if isinstance(tree, str):
        name, _, rest = tree.partition(":")
        model = parameters(name)
        given: Any = _older_arguments(rest, model, where=where)
    elif isinstance(tree, dict) and len(tree) == 1:
        ((name, given),) = tree.items()
        model = parameters(str(name))
        if not isinstance(given, dict):
            given = {_required(model) or "value": given}
    else:
        raise ConfigError(f"{where}: write {{name: {{key: value, ...}}}}, or the name alone")
    fields = model.model_fields
    if given and not fields:
        raise ConfigError(f"{where}: {name} takes no parameters")
    for key, field in fields.items():
        if field.annotation is MethodSpec:
            base = given.get(key, field.default)
            given = {**given, key: _resolved(base, parameters, where=where)}
    if (required := _required(model)) and required not in given and given.keys() <= fields.keys():
        raise ConfigError(f"{where} lacks its {required}: write {{{name}: {required.upper()}}}")
    checked = validated(model, given, where=where)
    values = {key: getattr(checked, key) for key in fields}
    return MethodSpec(str(name), tuple(values.items()), _canonical(str(name), values, model))


def _required(model: type[Section]) -> str:
    """Return the first parameter without a default, or an empty text."""
    return next((key for key, field in model.model_fields.items() if field.is_required()), "")


class _Word(str):
    """A number or switch in the older form: a `Section` refuses plain text for one, as quoted."""


def _older_arguments(rest: str, model: type[Section], *, where: str) -> dict[str, str]:
    """Return the arguments of ``value,key=value,...``, split at commas outside parentheses."""
    depth, words = 0, [""] if rest else []
    for sign in rest:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            break
        if sign == "," and depth == 0:
            words.append("")
        else:
            words[-1] += sign
    if depth:
        raise ConfigError(f"{where}: parentheses do not match")
    given = {}
    for place, word in enumerate(words):
        key, mark, value = word.partition("=")
        if place == 0 and _required(model) and not (mark and key in model.model_fields):
            key, value = _required(model), word
        if key in given:
            raise ConfigError(f"{where}: the key {shown(key)} stands twice")
        inner = value.startswith("(") and value.endswith(")")
        value = value[1:-1] if inner else value
        is_text = key in model.model_fields and model.model_fields[key].annotation is str
        given[key] = value if is_text else _Word(value)
    return given


def _canonical(name: str, values: dict[str, Any], model: type[Section]) -> str:
    given = {}
    for key, value in values.items():
        if isinstance(value, MethodSpec):
            value = parse_yaml(value.text, where=name)
        if value != model.model_fields[key].default:
            given[key] = list(value) if isinstance(value, tuple) else value
    if not given:
        return name
    short = [*given] == [_required(model)]
    return dump_yaml({name: given[_required(model)] if short else given}, flow=True)
