"""The JSON file that a benchmark leaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Row
from harl_fast.engine.provenance import code_version
from harl_fast.results import write_result


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
