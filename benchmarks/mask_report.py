"""From raw scores and times to the mask benchmark's table and its bars. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import Row, bar_table, spread

HORSES = "horses"
SPEED_FLOOR = 60.0
SELFTRAINED_GAIN = 0.03
MOST_USELESS = 0.02
COLUMNS = ("iou", "fbeta", "mae", "cells")
HEADS = ("IoU", "F-beta", "MAE", "cells")

Results = Mapping[str, Mapping[str, Any]]
"""By method: scores (by set and part, a mapping of `COLUMNS`), speed (images/s, one per round) and
shares (empty, full, stand_in) as far as they were measured."""


def check_rows(results: Results) -> list[Row]:
    """Return a line for each bar that can be judged."""
    rows = []
    iou = {name: _figure(found, HORSES, "iou") for name, found in results.items()}
    ours, peer, trained = (iou.get(name) for name in ("heuristic", "grabcut", "selftrained"))
    if ours is not None and peer is not None:
        what = "heuristic, IoU on horses (floor: GrabCut's)"
        rows.append(Row("M1", what, 100 * ours, "%", 100 * peer, 72.0))
    if trained is not None and ours is not None:
        what, floor = "selftrained, the same (floor: M1 + 3)", ours + SELFTRAINED_GAIN
        rows.append(Row("M2", what, 100 * trained, "%", 100 * floor, 80.0))
    for name, goal in (("heuristic", 300.0), ("selftrained", 200.0)):
        found = results.get(name, {})
        if found.get("speed"):
            s = spread(found["speed"])
            what = f"{name}, images/s per core"
            rows.append(Row("M3", what, s.median, "/s", SPEED_FLOOR, goal, s))
        if "shares" in found:
            empty_or_full = 100 * (found["shares"]["empty"] + found["shares"]["full"])
            either = empty_or_full + 100 * found["shares"]["stand_in"]
            limits = (100 * MOST_USELESS, 0.0)
            for what, share in (("empty or full", empty_or_full), ("  or a stand-in", either)):
                label = f"{name}, {what}"
                rows.append(Row("M4", label, share, "%", *limits, less_is_better=True))
    return rows


def missed(rows: Sequence[Row]) -> list[Row]:
    """Return the lines below their floor."""
    return [row for row in rows if row.verdict == "MISSED"]


def verdicts(rows: Sequence[Row]) -> str:
    """Return the bars as a table, and what it comes to."""
    if not rows:
        return "no bar could be judged: give HORSES=<folder with images/ and masks/>"
    below = missed(rows)
    reached = sum(row.verdict == "goal" for row in rows)
    closing = f"{reached} of {len(rows)} goals reached, {len(below)} floors missed"
    return f"{bar_table(rows)}\n{closing}"


def score_table(results: Results, sets: Mapping[str, Sequence[str]]) -> str:
    """Return the scores as text: a block per set, a line per method, columns per part."""
    blocks = []
    for name, parts in sets.items():
        head = f"{name:<22}" + "".join(f"{'| ' + part:<31}" for part in parts)
        below = " " * 22 + "".join("| " + "".join(f"{h:>7}" for h in HEADS) + " " for _ in parts)
        lines = [head.rstrip(), below.rstrip()]
        for method, found in results.items():
            scores = found["scores"].get(name)
            if scores:
                cells = ("".join(f"{scores[part][c]:>7.3f}" for c in COLUMNS) for part in parts)
                lines.append(f"{method:<22}" + "".join(f"| {text} " for text in cells).rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def cost_table(results: Results) -> str:
    """Return speeds and shares of useless masks as text."""
    head = f"{'':<22}{'images/s':>10}{'least':>9}{'most':>9}{'empty %':>10}{'full %':>9}"
    lines = [f"{head}{'stand-in %':>12}  supervision"]
    for method, found in results.items():
        line = f"{method:<22}"
        if found.get("speed"):
            s = spread(found["speed"])
            line += f"{_number(s.median):>10}{_number(s.least):>9}{_number(s.most):>9}"
        else:
            line += f"{'-':>10}{'-':>9}{'-':>9}"
        shares = found.get("shares")
        texts = [f"{100 * shares[k]:.1f}" if shares else "-" for k in ("empty", "full", "stand_in")]
        line += f"{texts[0]:>10}{texts[1]:>9}{texts[2]:>12}"
        lines.append(f"{line}  {found['facts'].get('supervision', '')}")
    return "\n".join(lines)


def _figure(found: Mapping[str, Any], name: str, column: str) -> float | None:
    scores = found["scores"].get(name)
    return float(scores["all"][column]) if scores else None


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
