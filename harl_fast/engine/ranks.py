"""The ranks of a job, as launch/guard.py finds and signals them."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

_RANK = "--local_rank"  # DeepSpeed's launcher gives it to ranks alone


def run_folder(command: list[str], *, about: str) -> Path:
    """Return the --run folder of a job's command, or exit with the usage; with help if asked."""
    found = ""
    for word, following in itertools.pairwise([*command, ""]):
        name, _, value = word.partition("=")
        found = (value or following or found) if name == "--run" else found  # the last one holds
    if found:
        return Path(found)
    usage = "usage: guard.py deepspeed ... launch/pretrain.py ... --run FOLDER ..."
    if command[:1] in (["-h"], ["--help"]):
        print(f"{usage}\n\n{about}")
        sys.exit(0)
    sys.exit(usage)


def ranks_below(pid: int) -> set[psutil.Process]:
    """Return the ranks that a process has started, itself or by others."""
    found = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ends meanwhile
                if any(word.startswith(_RANK) for word in process.cmdline()):
                    found.add(process)
    return found


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
