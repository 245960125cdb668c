"""The JSON file that a benchmark leaves."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harl_fast.files import write_json
from tests.bench.report import Row


def write_results(
    out: Path, rows: Sequence[Row], *, machine: Mapping[str, object], more: Mapping[str, Any]
) -> None:
    """Write when and where a benchmark ran, what it measured (``more``), the bars' verdicts."""
    write_json(out, {
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {**machine, "load_after": os.getloadavg()},
        **more,
        "bars": [dataclasses.asdict(row) | {"verdict": row.verdict} for row in rows],
    })  # fmt: skip
