"""What manifests tell of masks, store and history: which values they take, and how they add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from harl_fast.kinds import Share, Switch, Text, Whole

Texts = Text | list[Text]
"""As the next ones a list where the shards of a set differ, see `merged`."""
Wholes = Whole | list[Whole]
Switches = Switch | list[Switch]


class Mode(BaseModel):
    """How much of a container is stored under one mode."""

    count: Whole
    bytes: Whole


class Masks(BaseModel):
    """Part ``mask`` of a manifest; its other keys are for people to read."""

    size: Whole
    supervision: Texts = ""
    coverage_mean: Share = 0.0
    empty_share: Share = 0.0
    full_share: Share = 0.0
    fallbacks: Whole = 0
    stand_ins: Whole = 0
    edited: Whole = 0


class StoreFacts(BaseModel):
    """Part ``store`` of a manifest; its other keys are for people to read."""

    kind: Texts = "jpg"
    max_resolution: Wholes = 0
    quality: Wholes = 0
    range: Texts = ""
    icc: Switches = True
    keep_warned: Switches = False
    pages: Texts = ""
    channels: Wholes = 3
    remarks: dict[str, Whole] = {}
    reencoded: dict[str, Whole] = {}
    modes: dict[str, Mode] = {}
    pixels: Whole = 0
    warned: Whole = 0
    passed_through: Whole = 0


class Event(BaseModel):
    """An item of a manifest's ``history``."""

    created: Text
    source: Text
    first: Whole
    count: Whole


class Facts(BaseModel):
    """The parts of a manifest that `Manifest` keeps as they are."""

    mask: Masks
    store: StoreFacts
    history: list[Event] = []


_COUNTS = ("fallbacks", "stand_ins", "edited", "pixels", "warned", "passed_through")
_TALLIES = ("remarks", "reencoded", "modes")
"""Numbers in a manifest's facts that add up, and what holds nothing but such numbers."""


def merged(
    facts: Sequence[dict[str, Any]], weights: Sequence[int], *, added: bool = False
) -> dict[str, Any]:
    """Return facts of several shards as one: numbers added, shares averaged, the rest as it is.

    What differs becomes the list of its values. weights: samples of each. added: all is numbers.
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for each in facts for key in each):
        own = [(each[key], n) for each, n in zip(facts, weights, strict=True) if key in each]
        values, counts = [value for value, _ in own], [count for _, count in own]
        if key in _TALLIES or (added and isinstance(values[0], dict)):
            found[key] = merged(values, counts, added=True)
        elif added or key in _COUNTS:
            found[key] = sum(values)
        elif key.endswith(("_mean", "_share")):
            found[key] = sum(value * count for value, count in own) / max(1, sum(counts))
        else:
            distinct = [value for row, value in enumerate(values) if value not in values[:row]]
            found[key] = distinct[0] if len(distinct) == 1 else distinct
    return found
