"""Sections of configuration: checked, immutable, and with errors that say what could be meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from harl_fast.errors import ConfigError, nearest, one_line, shown
from harl_fast.options import to_int
from harl_fast.textfile import DEEPEST, dump_yaml, parse_yaml

MISTAKES = 10
"""Most mistakes of one file that are listed."""

Count = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """Base of all sections: immutable; unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would turn into a number (true, '1_0') or a switch (1.0, yes)."""
        wanted = _kinds(cls.model_fields[str(info.field_name)].annotation)
        given = {type(one) for one in (value if isinstance(value, list | tuple) else (value,))}
        numeric = bool(wanted & {int, float})
        if numeric and bool in given - wanted:
            raise ValueError(f"{shown(value)} is no number")
        if numeric and str in given - wanted:
            raise ValueError(f"a finite number without quotes is needed (got {shown(value)})")
        if bool in wanted and (given & {int, float, str}) - wanted:
            raise ValueError(f"{shown(value)} is neither true nor false")
        return value

    def yaml(self) -> str:
        """Return all values as YAML that gives an equal section when it is read back."""
        return dump_yaml(self.model_dump(mode="json"))


def _kinds(annotation: Any) -> set[type]:
    """Return the types that an annotation names, and those of a Literal's values."""
    if inner := get_args(annotation):
        return set().union(*map(_kinds, inner))
    return {annotation if isinstance(annotation, type) else type(annotation)}


def validated(
    model: type[Any], tree: dict[str, Any], *, where: str, synonyms: Mapping[str, str] | None = None
) -> Any:
    """Return ``model`` filled from ``tree``, or raise ConfigError with one line per mistake.

    synonyms: what other programs call a key, and what is to be written here.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        issues = error.errors()
        lines = [_explain(model, issue, synonyms or {}) for issue in issues[:MISTAKES]]
        if len(issues) > MISTAKES:
            lines.append(f"and {len(issues) - MISTAKES:,} more mistakes")
        raise ConfigError(f"{where}: {lines[0]}", *lines[1:]) from error


def blamed(given: Sequence[str], try_alone: Callable[[str], object]) -> list[str]:
    """Return which of several options to name in an error: up to three that fail alone, or any."""
    wrong = []
    for each in given:
        try:
            try_alone(each)
        except ConfigError:
            wrong.append(each)
    return (wrong or [*given])[:3]


def override(tree: dict[str, Any], text: str, *, option: str) -> None:
    """Set ``key.of.levels=value`` in a tree, the value being YAML and list items given by number.

    option: of the command line, for messages. Raises ConfigError.
    """
    key, mark, value = text.partition("=")
    *parents, last = key.split(".")
    if not mark or len(parents) >= DEEPEST:
        raise ConfigError(f"{option} {shown(text)}: write it as section.key=value")
    if not all((*parents, last)):
        raise ConfigError(
            f"{option} {shown(text)}: the key {shown(key)} has an empty part; write it as "
            f"section.key=value"
        )
    node: Any = tree
    try:
        for part in parents:
            node = node[_item(part)] if isinstance(node, list) else node.setdefault(part, {})
        place: Any = _item(last) if isinstance(node, list) else last
        node[place] = parse_yaml(value, where=f"{option} {one_line(key)}")
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{option} {shown(text)} does not fit the file: {shown(last)} stands below a value "
            f"without such an item"
        ) from error


def _item(text: str) -> int:
    """Return the number of an item of a list; Python would count negative ones from its end."""
    if (number := to_int(text)) < 0:
        raise IndexError(text)
    return number


def _explain(model: type[Any], issue: Any, synonyms: Mapping[str, str]) -> str:
    location = ".".join(str(part) for part in issue["loc"])
    where = one_line(location[:80])
    if issue["type"] == "value_error":
        return f"{where}{': ' if where else ''}{issue['ctx']['error']}"
    if issue["type"] != "extra_forbidden":
        return f"{where or 'configuration'}: {issue['msg']} (got {shown(issue['input'])})"
    name, fields = str(issue["loc"][-1]), _fields_at(model, issue["loc"][:-1])
    if name in synonyms:
        return f"unknown key {shown(location)}; write {synonyms[name]}"
    meant = nearest(name, fields) or f"; the keys there are {', '.join(fields)}"
    return f"unknown key {shown(location)}{meant}"


def _fields_at(model: type[Any], location: Sequence[int | str]) -> list[str]:
    node: Any = model
    for part in location:
        if isinstance(part, int):
            continue  # an item of a list of sections has the section's keys
        annotation = node.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        node = next(c for c in candidates if hasattr(c, "model_fields"))
    return list(node.model_fields)
