"""The daily commands, run one after another by programs that need several of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from harl_fast.errors import HarlError, one_line
from harl_fast.supervision import run_below

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder, in which they run."""


def training(ranks: int) -> tuple[str, ...]:
    """Return what stands before a training program: its guard, and DeepSpeed's launcher."""
    launcher = Path(sys.executable).with_name("deepspeed")
    if not launcher.exists():  # packages in a folder of their own, as of `make gpu-wheels`
        launcher = Path(shutil.which("deepspeed") or launcher)
    start = ("launch/guard.py", sys.executable, str(launcher))
    return (*start, "--log_level=error", "--num_gpus", str(ranks))


TRAINING = training(1)
"""The same of one rank."""


def run(*command: str | Path) -> None:
    """Run a command in the project's folder, showing it first; HarlError if it fails."""
    print("\n$", *(one_line(str(word)) for word in command), flush=True)
    if code := run_below([sys.executable, *map(str, command)], cwd=ROOT):
        raise HarlError(f"the command above ended with exit code {code}; its own message says why")
