"""Write docs/configuration.md from the sections: `python docs/configuration.py [--check]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harl_fast.config import RunConfig, ViewConfig
from harl_fast.engine.config import EngineFile
from harl_fast.finetuning import FinetuneConfig

PAGE = Path(__file__).with_suffix(".md")
HEAD = """\
# Configuration

Written by `python docs/configuration.py` from the sections in `harl_fast/config.py`,
`harl_fast/engine/config.py` and `harl_fast/finetuning.py`; `make lint` checks that it is current.

A run has two files. Any key can be overridden on the command line: `SET="optim.lr=0.3"` (`--set`)
for the method, `--engine-set train_batch_size=256` for the engine. List items go by number:
`data.views.0.size_px=96`. An unknown key is an error that names the nearest one, or what it is
called here. 10^6 and 4/3 below stand for plain numbers; write those.
"""


def number(value: float) -> str:
    """Return a limit as people write it: 2^63, 10^6, 4/3."""
    if value == int(value):
        powers = (f"{base}^{n}" for base in (10, 2) for n in range(64) if base**n == value >= 10**5)
        return next(powers, str(int(value)))
    long = len(repr(value)) > 12
    return str(Fraction(value).limit_denominator(100)) if long else f"{value:g}"


def text_of(default: Any) -> str:
    """Return a default as JSON; 4/3 stands for what has no end in decimal digits."""
    if isinstance(default, list | tuple):
        return f"[{', '.join(map(text_of, default))}]"
    long = isinstance(default, float) and len(repr(default)) > 12
    return number(default) if long else json.dumps(default)


def values(schema: dict[str, Any]) -> str:
    """Return what a key may be, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(values(one) for one in schema["anyOf"])
    if "prefixItems" in schema:
        kinds = [values(one) for one in schema["prefixItems"]]
        return f"{len(kinds)} x {kinds[0]}" if len(set(kinds)) == 1 else ", ".join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    names = {"integer": "whole number", "boolean": "`true`, `false`", "null": "empty"}
    names |= {"string": "text", "array": "list", "object": "mapping"}
    kind = schema.get("type", "")
    bounds = [
        f"{sign} {number(schema[key])}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
            ("multipleOf", "a multiple of"),
        )
        if key in schema
    ]
    return " ".join([names.get(kind, kind), ", ".join(bounds)]).strip()


def rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield a table row per key of a section that is no section itself."""
    schema = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        inner = section(field.annotation) is not None or "$ref" in str(schema[name])
        if inner or name == "views":
            continue
        default = "required" if field.is_required() else f"`{text_of(field.default)}`"
        about = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{prefix}{name}` | {default} | {values(schema[name])} | {about} |"


def section(annotation: Any) -> type[BaseModel] | None:
    """Return the annotation if it is a section's class."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def tables(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield a table for a section, then those of the sections within it."""
    listed = list(rows(model, prefix))
    if listed:
        about = " ".join((model.__doc__ or "").replace("``", "`").split())
        if prefix:
            yield f"\n### {prefix.rstrip('.')}\n\n{about}"
        yield "\n| key | default | values | meaning |\n|---|---|---|---|"
        yield from listed
    for name, field in model.model_fields.items():
        inner = ViewConfig if name == "views" else section(field.annotation)
        if inner is not None:
            yield from tables(inner, f"{prefix}{name}.{'N.' if name == 'views' else ''}")


def page() -> str:
    """Return the page's text."""
    method, engine, tuning = (
        "\n".join(tables(model)) for model in (RunConfig, EngineFile, FinetuneConfig)
    )
    return (
        f"{HEAD}\n## The method\n\nYAML, in `harl_fast/configs/` or a file of yours.\n{method}\n\n"
        f"## The engine\n\nDeepSpeed's JSON (comments are allowed), in `ds_configs/`. Other keys "
        f"are refused with the reason; a key without a meaning here has DeepSpeed's.\n{engine}\n\n"
        f"## Fine-tuning\n\nYAML, in `harl_fast/configs/finetune/` or a file of yours. Each key of "
        f"the first table is also a flag of `launch/finetune.py`, with dashes or underscores.\n"
        f"{tuning}\n"
    )


def main(arguments: list[str]) -> int:
    """Write the page, or with --check say whether it is current."""
    text = page()
    if arguments != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not current: run `python docs/configuration.py`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
