"""DeepSpeed's launcher and its ranks as processes that start at once: no torch, no training.

`standin_job.py deepspeed --ranks N [--deaf] --run FOLDER` starts what its real namesake starts, one
below the other, and treats signals and exit codes alike; ranks stop as real ones do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harl_fast.engine.stop import StopAction, StopSignal
from harl_fast.supervision import supervisors


def below(role: str, *more: str, **env: str) -> subprocess.Popen[bytes]:
    words = [__file__, role, *sys.argv[2:], *more]
    return subprocess.Popen([sys.executable, *words], env=os.environ | env)


def runner() -> int:
    """Wait for the other half; a signal is not passed on, nor the code of a half that is killed."""
    return max(below("launch").wait(), 0)


def launch(count: int) -> int:
    """Start the ranks; end all as soon as one fails."""
    ranks = [below("rank", f"--local_rank={rank}", RANK=str(rank)) for rank in range(count)]

    def end(number: int, frame: object) -> None:
        for rank in ranks:
            rank.terminate()
        sys.exit(next((rank.returncode for rank in ranks if rank.poll()), 1))

    signal.signal(signal.SIGTERM, end), signal.signal(signal.SIGINT, end)
    while None in [rank.poll() for rank in ranks]:
        if any(rank.returncode for rank in ranks):
            end(0, None)
        time.sleep(0.1)
    return 0


def rank(folder: Path, *, deaf: bool) -> int:
    """Step until there is a wish to leave; the first rank leaves a marker with the reason."""
    watched = supervisors()
    leader, code = os.environ["RANK"] == "0", 0
    with StopSignal(supervisors=watched) as stop:
        (folder / f"rank-{os.getpid()}").touch()
        try:
            while stop.action < StopAction.LEAVE or deaf:
                time.sleep(0.02)
        except KeyboardInterrupt:
            while deaf:
                time.sleep(1.0)
            (folder / f"interrupted-{os.getpid()}").touch()
            return 130
        if leader:
            code = 130 if stop.action == StopAction.INTERRUPT else 0
            (folder / "preempted").write_text(json.dumps({"reason": stop.reason}))
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["deepspeed", "launch", "rank"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--local_rank")
    args = parser.parse_args()
    if args.role == "deepspeed":
        sys.exit(runner())
    sys.exit(launch(args.ranks) if args.role == "launch" else rank(args.run, deaf=args.deaf))
