"""YAML, JSON and Hjson from outside, read under limits: each mistake is one line with the file.

All three refuse a key that stands twice, numbers that are not finite, and deep nesting. YAML is
read as version 1.2 has it: ``1e-3`` is a number; ``yes``, ``12:30`` and ``2024-01-31`` are texts.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hjson
import yaml
from hjson.decoder import make_scanner

from harl_fast.errors import ConfigError, HarlError, one_line, shown
from harl_fast.files import pointer_reason, without_waiting

MOST_BYTES = 1 << 16
"""Largest configuration file; the shipped ones have 1 to 2 kB."""
DEEPEST = 32
"""Most levels of nesting; configurations have 4."""
MOST_DIGITS = 30
"""Longest whole number; no setting needs more than 20 digits."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$"
    r"|\.(nan|NaN|NAN)$"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_BARE = re.compile(r"[^\s,:{}\[\]\"'#/]+(?:/[^\s,:{}\[\]\"'#/*]+)*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NAMED = {"true": True, "false": False, "null": None}


class _Twice(ValueError):
    pass


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars; no anchors, aliases or tags, which can grow without bound."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            what = "alias" if isinstance(event, yaml.AliasEvent) else "anchor or tag"
            raise yaml.MarkedYAMLError(
                problem=f"an {what} (& * !) is not supported; write the value out",
                problem_mark=event.start_mark,
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {DEEPEST} levels deep", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    first = lines[key.value]
                    raise _Twice(
                        f"the key {shown(key.value)} stands twice, in lines {first} and {line}; "
                        f"keep one"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what a YAML 1.1 or a 1.2 reader would not take for a text."""


_PLAIN: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"(~|null|Null|NULL|)$"), "~nN"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
)
_Loader.yaml_implicit_resolvers = {}  # those of version 1.1
for _tag, _form, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", _form, [*_first, *([""] if _tag == "null" else [])]
        )


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits; {MOST_DIGITS} are the most")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is no finite number")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: _whole(str(node.value)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise _Twice(f"the key {shown(key)} stands twice; keep one")
        tree[key] = value
    return tree


class _Hjson(hjson.HjsonDecoder):  # type: ignore[misc]  # the library has no types
    """Hjson whose bare words end where JSON's values do.

    In Hjson itself they take in all that follows in their line: ``{"a": 08, "b": 1}`` is then an
    object without end.
    """

    def __init__(self, **options: Any) -> None:  # of hjson's own decoder
        super().__init__(**options)
        self.parse_tfnns = _bare_value
        self.scan_once, self.scan_object_once = make_scanner(self)


def _bare_value(decoder: _Hjson, text: str, start: int) -> tuple[Any, int]:
    """Return the value of a bare word, and where it ends."""
    found = _BARE.match(text, start)
    if found is None:
        raise hjson.HjsonDecodeError("A value is expected", text, start)
    word = found.group()
    if word in _NAMED:
        return _NAMED[word], found.end()
    if (number := _NUMBER.fullmatch(word)) is not None:
        read = decoder.parse_float if number[2] or number[3] else decoder.parse_int
        try:
            return read(word), found.end()
        except ValueError as refused:
            raise hjson.HjsonDecodeError(str(refused), text, start) from refused
    if not (word[0].isalpha() or word[0] == "_") or word in ("NaN", "Infinity"):
        problem = f"{shown(word)} is no number; a text needs quotes"
        raise hjson.HjsonDecodeError(problem, text, start)
    return word, found.end()


def _hjson(text: str, **options: Any) -> Any:
    """Return the value of an Hjson text; `ValueError` says in plain words where it is wrong."""
    try:
        return hjson.loads(text, cls=_Hjson, **options)
    except IndexError as problem:  # it runs over the end of a comment, or of a text in '''
        start = max(text.rfind("/*"), text.rfind("'''"))
        line = text.count("\n", 0, start) + 1
        what = "comment" if text.startswith("/*", start) else "text"
        raise ValueError(f"the {what} that starts in line {line} has no end") from problem
    except hjson.HjsonDecodeError as problem:
        if "(eof)" not in problem.msg:
            raise
        raise ValueError(f"it ends in line {problem.lineno} before a closing }}") from problem


def read_text(
    path: Path, *, error: type[HarlError] = ConfigError, most_bytes: int = MOST_BYTES
) -> str:
    """Return the text of a regular UTF-8 file of at most ``most_bytes``; raises ``error``.

    A byte order mark is dropped. Devices and pipes are not waited for.
    """
    try:
        with open(path, "rb", opener=without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise error(f"{path} is no regular file; give a text file")
            data = stream.read(most_bytes + 1)
    except IsADirectoryError as problem:
        raise error(
            f"{path} is a folder: give a file in it, such as the config.yaml of a run"
        ) from problem
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except ValueError as problem:  # a NUL in the name
        raise error(f"{path} cannot be a file's name: {problem}") from problem
    if reason := pointer_reason(data):
        raise error(f"{path} is {reason}")
    if len(data) > most_bytes:
        raise error(f"{path} has more than {most_bytes:,} bytes, which such a file never needs")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(f"{path} is no UTF-8 text (line {line}); save it as UTF-8") from problem
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise error(
            f"{path} is no plain text: character {shown(control.group())} in line {line}; remove it"
        )
    return text


def parse_yaml(text: str, *, where: str, error: type[HarlError] = ConfigError) -> Any:
    """Return the value of a YAML text; raises ``error`` with ``where`` it came from."""
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _Twice as problem:
        raise error(f"{where}: {problem}") from problem
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise error(f"{where}: not valid YAML: {_line(problem.problem)}{place}") from problem
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        raise error(f"{where}: not valid YAML: {_line(problem)}") from problem
    return _checked(value, where=where, error=error)


def parse_json(
    text: str, *, where: str, error: type[HarlError] = ConfigError, hjson_too: bool = False
) -> dict[str, Any]:
    """Return the object of a JSON text; raises ``error`` with ``where`` it came from.

    hjson_too: comments and bare words are allowed, see `_Hjson`.
    """
    loads: Any = _hjson if hjson_too else json.loads
    try:
        value = loads(text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_real)
    except _Twice as problem:
        raise error(f"{where}: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{where}: nested more than {DEEPEST} levels deep") from problem
    except ValueError as problem:
        raise error(f"{where}: not valid JSON: {_line(problem)}") from problem
    tree = _checked(value, where=where, error=error)
    if not isinstance(tree, dict):
        raise error(f"{where}: holds {_kind(tree)}; an object {{...}} is expected")
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; raises ConfigError for anything but a mapping."""
    tree = parse_yaml(read_text(path), where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {_kind(tree)}; sections with keys are expected")
    return tree


def read_json(
    path: Path,
    *,
    error: type[HarlError] = ConfigError,
    most_bytes: int = MOST_BYTES,
    hjson_too: bool = False,
) -> dict[str, Any]:
    """Return the object of a JSON file, see `read_text` and `parse_json`."""
    text = read_text(path, error=error, most_bytes=most_bytes)
    return parse_json(text, where=str(path), error=error, hjson_too=hjson_too)


def dump_yaml(tree: dict[str, Any], *, flow: bool = False) -> str:
    """Return YAML that `parse_yaml` and readers of YAML 1.1 read back alike.

    flow: in braces on one line, without a line break at its end.
    """
    style: dict[str, Any] = {}
    if flow:
        style = {"default_flow_style": True, "width": float("inf"), "allow_unicode": True}
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, **style)
    return text.removesuffix("\n") if flow else text


def tree_sha256(tree: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever order their keys are in."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _checked(value: Any, *, where: str, error: type[HarlError]) -> Any:
    for key, depth, node in nodes(value):
        if depth > DEEPEST:
            raise error(f"{where}: nested more than {DEEPEST} levels deep")
        if isinstance(node, float) and not math.isfinite(node):
            place = f"{where}: {one_line(key)}" if key else where
            raise error(f"{place}: {node} is not finite; give a number")
    return value


def nodes(value: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield each value within a tree, in order, with its dotted key and depth; no recursion."""
    waiting = [("", 0, value)]
    while waiting:
        key, depth, node = waiting.pop()
        yield key, depth, node
        if isinstance(node, dict | list | tuple):
            inner = node.items() if isinstance(node, dict) else enumerate(node)
            below = [(f"{key}.{name}".lstrip("."), depth + 1, one) for name, one in inner]
            waiting += reversed(below)


def _kind(value: Any) -> str:
    names = {type(None): "nothing", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _line(problem: object) -> str:
    return one_line(str(problem).partition("\n")[0])[:200]
