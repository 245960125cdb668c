"""Time limits (durations, the process's age, the last step) and repeated signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harl_fast.engine import stop
from harl_fast.engine.stop import MARGIN_S, StopSignal, TimeLimit, parse_duration, process_age_s

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400.0), ("0.5", 30.0), ("01:30:00", 5400.0), ("100:00:07", 360007.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-3",
        "1:30",
        "nan",
        "inf",
        "1h",
        "1:2:3:4",
        "1:-2:0",
        "-0:0:5",
        "1_0",
        " 1 ",
        "1e308:0:0",
        "99:99:99",
        "0:60:0",
        "0:0:60",
        "nan:0:1",
        "0:nan:1",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


def test_the_age_counts_from_the_start_of_the_process() -> None:
    """A process sleeps and tells its age; the time around it is taken on this side."""
    code = (
        "import sys, time; from harl_fast.engine.stop import process_age_s as age;"
        "print(age(), flush=True); sys.stdin.readline(); print(age(), flush=True)"
    )
    # The kernel counts a start in whole ticks, rounded down: an age is up to one too large.
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    before = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        created = time.monotonic()
        first = float(child.stdout.readline())
        told = time.monotonic()
        time.sleep(0.5)
        asked = time.monotonic()
        child.stdin.write(b"\n")
        child.stdin.flush()
        second = float(child.stdout.readline())
        ended = time.monotonic()
    assert 0.0 < first <= told - before + tick_s
    assert asked - created <= second <= ended - before + tick_s
    assert asked - told <= second - first <= ended - before


def test_the_last_step_leaves_time_for_the_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 2 s, saves of 4 s: at a limit of 100 s it must end at 2 + 2 + 6 s and the margin."""
    age = [40.0]  # a start-up that no step resembles
    monkeypatch.setattr(stop, "process_age_s", lambda: age[0])
    limit = TimeLimit(100.0, state_bytes=10**12)
    limit.saved(4.0)
    while not limit.reached():
        age[0] += 2.0
    assert limit.passed and 100.0 - MARGIN_S - 10.0 <= age[0] < 100.0 - MARGIN_S - 8.0
    assert not TimeLimit(None).reached()


def test_before_the_first_save_its_time_is_guessed_from_its_size() -> None:
    age = process_age_s()
    assert TimeLimit(age + 60.0, state_bytes=2 * 10**9).reached()  # 40 s of writing
    assert not TimeLimit(age + 60.0, state_bytes=10**8).reached()


def test_a_second_interrupt_ends_at_once_but_a_second_term_does_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
