"""A group's CPU time is that of all its processes, also of those that ended meanwhile."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.process import group_s

BURNED_S = 0.3
# A leader, its child and a grandchild that computes. A line per state; a word leads to the next.
FAMILY = f"""
import os, sys, time
def tell(text):
    print(text, flush=True)
    sys.stdin.readline()
tell("begun")
if (child := os.fork()) == 0:
    if (grandchild := os.fork()) == 0:
        while time.process_time() < {BURNED_S}:
            pass
        tell("at work")
        os._exit(0)
    os.waitid(os.P_PID, grandchild, os.WEXITED | os.WNOWAIT)
    tell("ended")
    os.waitpid(grandchild, 0)
    tell("waited for")
    os._exit(0)
os.waitpid(child, 0)
tell("waited for by the leader")
"""


@pytest.fixture
def family():
    with subprocess.Popen(
        [sys.executable, "-S", "-c", FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.communicate("\n" * 9)


def test_work_counts_once_while_a_process_lives_after_its_end_and_when_it_was_waited_for(
    family,
) -> None:
    seen = {}
    for state in ("begun", "at work", "ended", "waited for", "waited for by the leader"):
        assert family.stdout.readline().strip() == state
        seen[state] = group_s(family.pid)
        family.stdin.write("\n")
        family.stdin.flush()
    work = {state: seconds - seen["begun"] for state, seconds in seen.items() if state != "begun"}
    # Twice would be 0.6. Each process rounds its times to ticks of 10 ms, and forking takes one.
    assert all(BURNED_S - 0.03 < seconds < BURNED_S + 0.1 for seconds in work.values()), work
