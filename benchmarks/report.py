"""From raw rounds to rates, ratios and the table of bars. Arithmetic only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rounds = Mapping[str, Sequence[Mapping[str, float]]]
MB = 10**6
SPARE = 64 * MB
QUIET_CORES = 0.15
"""Up to here the rest of the machine counts as idle."""


@dataclass(frozen=True)
class Spread:
    """Median, least and most of a figure's rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    bar: str
    what: str
    measured: float
    unit: str
    floor: float | None = None
    goal: float | None = None
    spread: Spread | None = None
    less_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Return ``goal``, ``floor`` or ``MISSED``; empty for a line without a bar."""
        if self.floor is None and self.goal is None:
            return ""
        for name, limit in (("goal", self.goal), ("floor", self.floor)):
            if limit is None:
                continue
            if self.measured <= limit if self.less_is_better else self.measured >= limit:
                return name
        return "MISSED"


@dataclass(frozen=True)
class Ratio:
    """A bar on one contender's rate over another's."""

    bar: str
    what: str
    ours: str
    peers: tuple[str, ...]
    """The fastest of these is the reference."""
    floor: float | None = None
    goal: float | None = None
    less_is_better: bool = False
    """Such as of a step's time over another's: how many times longer ``peers`` take."""


BARE = ("bare", "bare_fastdct")
RATIOS = (
    Ratio("L1", "over torchvision PIL", "ours_float", ("pil",), 5.0, 10.0),
    Ratio("L2", "over torchvision v2", "ours_float", ("v2", "v2_separable"), 3.0, 6.0),
    Ratio("L3", "over stock ffcv", "ours_uint8", ("ffcv", "ffcv_cv1"), 2.0, 3.0),
    Ratio("L4", "share of bare decode, store jpg", "ours_uint8", BARE, 0.61, 0.78),
    Ratio("L4", "  same bytes: passthrough", "ours_passthrough", BARE),
    Ratio("L5", "raw over bare decode", "ours_raw", BARE, 1.0, 1.5),
    Ratio("L5", "yuv420 over bare decode", "ours_yuv420", BARE, 1.0, 1.5),
    Ratio("L6", "samples checked over unchecked", "ours_uint8", ("ours_unchecked",), 0.97, 0.99),
    Ratio("L9", "two threads over one", "ours_uint8", ("ours_uint8_one",), 1.85, 1.95),
    Ratio("L9", "  bare decode's own", "bare", ("bare_one",)),
    Ratio("L10", "half of the backgrounds replaced", "ours_half", ("ours_uint8",), 0.8, 0.9),
    Ratio("L10", "  all of them", "ours_replaced", ("ours_uint8",)),
)


def spread(values: Sequence[float]) -> Spread:
    """Return the median and range of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rates(rounds: Rounds) -> dict[str, list[float]]:
    """Return each contender's samples per second, one per round."""
    return {name: [r["samples"] / r["seconds"] for r in turns] for name, turns in rounds.items()}


def disturbance(rounds: Rounds) -> str:
    """Return a warning if anything else used the machine during a turn, else an empty text."""
    loads = {name: max(turn["others"] for turn in turns) for name, turns in rounds.items() if turns}
    worst = max(loads, key=lambda name: loads[name], default=None)
    if worst is None or loads[worst] <= QUIET_CORES:
        return ""
    disturbed = sum(turn["others"] > QUIET_CORES for turns in rounds.values() for turn in turns)
    return (
        f"NOT A QUIET MACHINE: other programs were at work in {disturbed} turns, at worst "
        f"{loads[worst]:.2f} cores during {worst}. Do not quote these figures."
    )


def reference(speeds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str | None:
    """Return which of ``names`` has the highest median rate; None if none took part."""
    there = [name for name in names if speeds.get(name)]
    return max(there, key=lambda name: statistics.median(speeds[name]), default=None)


def needed(ratios: Sequence[Ratio], bars: Sequence[str]) -> list[str]:
    """Return the contenders that the bars' ratios need, in the order of the ratios."""
    chosen = [ratio for ratio in ratios if ratio.bar in bars]
    return list(dict.fromkeys(name for ratio in chosen for name in (ratio.ours, *ratio.peers)))


def ratio_rows(
    speeds: Mapping[str, Sequence[float]], ratios: Sequence[Ratio] = RATIOS
) -> list[Row]:
    """Return the lines of all ratios whose contenders took part.

    A ratio is taken within each round, whose two turns lie seconds apart; the median is over
    rounds.
    """
    rows = []
    for ratio in ratios:
        peer = reference(speeds, ratio.peers)
        if peer is None or not speeds.get(ratio.ours):
            continue
        found = spread([a / b for a, b in zip(speeds[ratio.ours], speeds[peer], strict=True)])
        what = f"{ratio.what} ({peer})" if len(ratio.peers) > 1 else ratio.what
        rows.append(
            Row(ratio.bar, what, found.median, "x", ratio.floor, ratio.goal, found,
                ratio.less_is_better)
        )  # fmt: skip
    return rows


def memory_rows(taken: Mapping[str, Any]) -> list[Row]:
    """Return L7's lines from one answer of `solo.memory`."""
    above = taken["anonymous peak"] - taken["anonymous before"]
    buffers = taken["buffer"] * taken["buffers needed"]
    pages = taken["file peak"] - taken["file before"]
    return [
        Row("L7", "anonymous memory above imports", above / MB, "MB", 400.0,
            (buffers + SPARE) / MB, less_is_better=True),
        Row("L7", f"  {taken['buffers needed']} output buffers need", buffers / MB, "MB"),
        Row("L7", "  excess over the buffers", (above - buffers) / MB, "MB", None, SPARE / MB,
            less_is_better=True),
        Row("L7", "  page cache mapped beside it", pages / MB, "MB"),
    ]  # fmt: skip


def start_rows(starts: Sequence[Mapping[str, float]]) -> list[Row]:
    """Return L8's lines from the answers of `solo.start`; none may be a first start."""
    construct = spread([s["construct"] for s in starts])
    whole = spread([s["process"] for s in starts])
    return [
        Row("L8", "construction to first batch", construct.median, "s", 5.0, 1.5, construct,
            less_is_better=True),
        Row("L8", "  with interpreter and imports", whole.median, "s", None, None, whole),
    ]  # fmt: skip


def rate_table(speeds: Mapping[str, Sequence[float]]) -> str:
    """Return the contenders' rates as text."""
    lines = [f"{'contender':<20}{'samples/s':>11}{'least':>10}{'most':>10}"]
    for name, values in speeds.items():
        s = spread(values)
        lines.append(f"{name:<20}{s.median:>11,.0f}{s.least:>10,.0f}{s.most:>10,.0f}")
    return "\n".join(lines)


def bar_table(rows: Sequence[Row]) -> str:
    """Return the bars as text: bar, floor, goal, measured, range over rounds, verdict."""
    head = f"{'bar':<4}{'measure':<46}{'floor':>8}{'goal':>8}{'measured':>12}{'range':>16}"
    lines = [f"{head}  reached"]
    for row in rows:
        limits = "".join(f"{_number(value):>8}" for value in (row.floor, row.goal))
        measured = f"{_number(row.measured)} {row.unit}"
        span = f"{_number(row.spread.least)}-{_number(row.spread.most)}" if row.spread else ""
        line = f"{row.bar:<4}{row.what:<46}{limits}{measured:>12}{span:>16}  {row.verdict}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if 0.0 < abs(value) < 0.01:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
