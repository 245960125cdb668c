"""The progress line of everything that takes longer than two seconds."""

from __future__ import annotations

import io

import pytest

from harl_fast import files
from harl_fast.files import Progress


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (40_000, "reading: 40,000 of 80,000 images, 2,000/s, eta 20s\n"),
        (3, "reading: 3 of 80,000 images, 0.15/s, eta"),
        (0, "reading: 0 of 80,000 images, 0/s, eta 0s\n"),
    ],
)
def test_a_line_tells_count_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, done: int, line: str
) -> None:
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(80_000, label="reading", stream=stream) as progress:
        now[0] = 20.0
        progress.advance(done)
    assert stream.getvalue().startswith(line)
    assert stream.getvalue().splitlines()[-1].endswith(f"in 20s, {line.split(', ')[1]}")
