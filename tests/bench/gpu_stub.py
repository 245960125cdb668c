"""Sections of a GPU check that end in each way, for the test of what runs them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_sections import CheckSettings, Findings


def good(settings: CheckSettings, found: Findings) -> None:
    found.at_most("a time", 5.0, 1.0, "s", timing=True)  # no bar on a CPU
    found.holds("so it is", True)
    found.fact("version", "1.2")


def missed(settings: CheckSettings, found: Findings) -> None:
    found.at_least("a share", 0.4, 0.5)


def crash(settings: CheckSettings, found: Findings) -> None:
    found.note("before it", 1.0)
    print("said on standard output")  # no finding
    raise ValueError("the reason")


def hang(settings: CheckSettings, found: Findings) -> None:
    found.note("before it", 1.0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                             start_new_session=True)  # fmt: skip
    Path(settings.out, "child").write_text(str(child.pid))
    time.sleep(600)


def leave_behind(settings: CheckSettings, found: Findings) -> None:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(settings.out, "child").write_text(str(child.pid))
