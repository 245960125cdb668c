"""The programs of the project, found by their files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _programs(*folders: str) -> dict[str, list[str]]:
    """Return what starts each file with a main of its own that reads a command line."""
    found = {}
    for path in sorted(each for folder in folders for each in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        place = path.relative_to(ROOT)
        if 'if __name__ == "__main__":' not in text:
            continue
        if place.parts[0] == "launch":
            found[str(place)] = [str(place)]
        elif "Parser(" in text:  # others are started by ours alone
            module = ".".join(place.with_suffix("").parts).removesuffix(".__main__")
            found[module] = ["-m", module]
    return found


PROGRAMS = _programs("launch", "preprocess", "harl_fast")
BENCHMARKS = _programs("benchmarks")


def started(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python with these words, as a terminal does: with SIGINT not ignored."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
