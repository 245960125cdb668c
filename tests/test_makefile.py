"""Variables of the Makefile that are numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("ranks", "code"), [("1", 0), ("16", 0), ("", 0), ("0", 2), ("-1", 2), ("two", 2), ("1.5", 2)]
)
def test_ranks_is_a_number_from_one_up(ranks: str, code: int) -> None:
    listed = subprocess.run(
        ["make", "-n", "-o", "setup", "pretrain", f"RANKS={ranks}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    check = next(line for line in listed if line.startswith("case"))
    result = subprocess.run(["bash", "-c", check], capture_output=True, text=True)
    assert result.returncode == code
    assert result.stderr == (f"RANKS={ranks} is no number from 1 up\n" if code else "")
