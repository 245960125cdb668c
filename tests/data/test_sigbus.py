"""A mapped file that is cut reads as zeros behind its end; every other bus error stays one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import faulthandler, mmap, os, sys
import numpy as np
from harl_fast.data.container.sigbus import Guard

PAGE = mmap.PAGESIZE

def mapped(name):
    with open(name, "wb") as stream:
        stream.write(bytes([7]) * (3 * PAGE - 5))
    with open(name, "rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

faulthandler.enable()
whole, cut, unguarded = (mapped(os.path.join(sys.argv[1], name)) for name in "abc")
guards = [Guard(part) for part in (whole, cut, unguarded)]
guards[2].close()
for name in "bc":
    os.truncate(os.path.join(sys.argv[1], name), PAGE)
print(cut[0], cut[PAGE + 9], cut[2 * PAGE + 9], whole[2 * PAGE + 9], [g.hits for g in guards])
print("a foreign one", flush=True)
print(unguarded[PAGE + 9])
"""


def test_only_guarded_mappings_are_covered_and_the_handler_before_gets_the_rest(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    # One hit covers all that is left of the mapping.
    assert done.stdout.splitlines() == ["7 0 0 7 [0, 1, 0]", "a foreign one"], done.stderr
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr and "line" in done.stderr  # faulthandler's trace
