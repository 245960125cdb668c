"""The kinds of values that a JSON file holds: declared once, checked as it is read."""

from __future__ import annotations

import functools
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from harl_fast.errors import HarlError, one_line, shown

Whole = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""A whole number from 0; of no text, and not true or false."""
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number."""
Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]

_adapter = functools.cache(TypeAdapter[Any])


def of_kind(value: Any, kind: Any, *, where: str, remedy: str, error: type[HarlError]) -> Any:
    """Return a value of JSON as ``kind``: a type, a TypedDict or a dataclass of such.

    Raises ``error`` with the first key that holds another kind, and its value. where: the file.
    remedy: what to do, as a sentence.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = one_line(".".join(str(part) for part in first["loc"]))[:80] or "the whole file"
        got = "" if first["type"] == "missing" else f" (got {shown(first['input'])})"
        raise error(f"{where}: {place}: {first['msg']}{got}. {remedy}") from problem
