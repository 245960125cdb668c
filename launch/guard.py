"""Run a training under a launcher and tell the truth about it: `python launch/guard.py COMMAND`.

DeepSpeed's launcher does not pass signals on to its ranks in a way that lets them save and still
ends with code 0, and ends with 0 if a part of it is killed. This passes SIGTERM, SIGUSR1 and SIGINT
on to the ranks of COMMAND as SIGUSR1, and takes the exit code from the marker in COMMAND's --run
folder: 0 for a new `finished` or `preempted` one (130 after SIGINT), never 0 without one.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import psutil

MARKERS = ("finished", "preempted")
RANK = "--local_rank"  # DeepSpeed's launcher gives it to ranks alone


def run_folder(command: list[str]) -> Path:
    """Return the value of --run, or end with a usage message."""
    for number, word in enumerate(command):
        if word == "--run" and number + 1 < len(command):
            return Path(command[number + 1])
        if word.startswith("--run="):
            return Path(word.partition("=")[2])
    sys.exit("usage: guard.py deepspeed ... launch/pretrain.py ... --run FOLDER ...")


def markers(folder: Path) -> dict[str, tuple[int, int]]:
    """Return which markers there are, and of what they would not be the same files again."""
    found = {name: folder / name for name in MARKERS if (folder / name).is_file()}
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in found.items()}


def tell_ranks(launcher: int, number: int) -> None:
    """Send a signal to all ranks below the launcher."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(launcher).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ends meanwhile
                if any(word.startswith(RANK) for word in process.cmdline()):
                    process.send_signal(number)


def main(command: list[str]) -> int:
    """Run the command; return the exit code."""
    folder = run_folder(command)
    before = markers(folder)
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)
        if got.count(signal.SIGINT) > 1:
            tell_ranks(child.pid, signal.SIGKILL)

    # Inherited: a SIGUSR1 to all processes of the job would end the launcher, which does not know
    # it. Ranks set their own answer; until they do they hear nothing, so they are told repeatedly.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = subprocess.Popen(command, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, note)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(timeout=0.5)
            break
        if got:
            tell_ranks(child.pid, signal.SIGUSR1)
    if any(before.get(name) != now for name, now in markers(folder).items()):
        return 130 if signal.SIGINT in got else 0
    if code == 0:
        print(f"error: the job left no marker in {folder}: it did not end well", file=sys.stderr)
    return code if code > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
