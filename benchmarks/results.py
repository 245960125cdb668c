"""Which bars a benchmark measures, and the figures and the JSON file that it leaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Row, bar_table, disturbance
from harl_fast.options import checked
from harl_fast.provenance import code_version
from harl_fast.results import write_result


def bars_among(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argparse type: names of bars with commas between."""

    def read(text: str) -> tuple[str, ...]:
        bars = tuple(text.upper().split(","))
        if unknown := sorted(set(bars) - set(known)):
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return bars

    return checked(read)


def conclude(
    out: Path,
    rows: Sequence[Row],
    rounds: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    machine: Mapping[str, object],
    more: Mapping[str, Any],
) -> None:
    """Print the bars, write them with all rounds, and say where; see `write_results`."""
    print(bar_table(rows))
    warning = disturbance(rounds)
    if warning:
        print(f"\n{warning}")
    more = {**more, "rounds": rounds, "warning": warning}
    write_results(out, rows, machine=machine, more=more)
    print(f"\nall rounds: {out}")


def write_results(
    out: Path, rows: Sequence[Row], *, machine: Mapping[str, object], more: Mapping[str, Any]
) -> None:
    """Write when and where a benchmark ran, what it measured (``more``), the bars' verdicts.

    Its provenance: the settings and the input in ``more``, the machine, and the code.
    """
    code = code_version()
    lasting = {key: value for key, value in machine.items() if key != "load_before"}
    chosen = {key: more[key] for key in ("settings", "input") if key in more}
    result = {
        "machine": {**machine, "load_after": os.getloadavg()},
        **more,
        "bars": [dataclasses.asdict(row) | {"verdict": row.verdict} for row in rows],
    }
    provenance = {**chosen, "machine": lasting, "code": code}
    write_result(out, result, provenance=provenance, name=code)
