"""The daily commands, run one after another by programs that need several of them."""

from __future__ import annotations

import sys
from pathlib import Path

from harl_fast.errors import HarlError, one_line
from harl_fast.supervision import run_below

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder, in which they run."""
TRAINING = (
    *("launch/guard.py", sys.executable, str(Path(sys.executable).with_name("deepspeed"))),
    *("--log_level=error", "--num_gpus", "1"),
)
"""What stands before a training program: its guard, and DeepSpeed's launcher."""


def run(*command: str | Path) -> None:
    """Run a command in the project's folder, showing it first; HarlError if it fails."""
    print("\n$", *(one_line(str(word)) for word in command), flush=True)
    if code := run_below([sys.executable, *map(str, command)], cwd=ROOT):
        raise HarlError(f"the command above ended with exit code {code}; its own message says why")
