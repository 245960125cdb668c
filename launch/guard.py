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
import time
from pathlib import Path

import psutil

MARKERS = ("finished", "preempted")
RANK = "--local_rank"  # DeepSpeed's launcher gives it to ranks alone


def run_folder(command: list[str]) -> Path:
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


def ranks_below(launcher: int) -> set[psutil.Process]:
    found = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(launcher).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ends meanwhile
                if any(word.startswith(RANK) for word in process.cmdline()):
                    found.add(process)
    return found


def tell(ranks: set[psutil.Process], number: int) -> None:
    for rank in ranks:
        with contextlib.suppress(psutil.Error):
            rank.send_signal(number)


def main(command: list[str]) -> int:
    folder, ranks, got = run_folder(command), set[psutil.Process](), list[int]()
    before = markers(folder)
    # Inherited: a SIGUSR1 to all processes of the job would end the launcher, which does not know
    # it. Ranks set their own answer; until they do they hear nothing, so they are told repeatedly.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = subprocess.Popen(command, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: got.append(number))
    while (code := child.poll()) is None:
        time.sleep(0.2)
        ranks |= ranks_below(child.pid)
        if got:
            tell(ranks, signal.SIGKILL if got.count(signal.SIGINT) > 1 else signal.SIGUSR1)
    lost = any(rank.is_running() for rank in ranks)  # without a launcher, or parts of it
    tell(ranks, signal.SIGUSR1)
    tell(set(psutil.wait_procs(ranks, timeout=30)[1]), signal.SIGKILL)
    if any(before.get(name) != now for name, now in markers(folder).items()) and (got or not lost):
        return 130 if signal.SIGINT in got else 0
    if code == 0:
        print(f"error: {folder} has no new marker: the job did not end well", file=sys.stderr)
    return code if code > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
