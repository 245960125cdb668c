"""The ranks of a job, as launch/guard.py finds and signals them."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from harl_fast.engine.stop import LOST
from harl_fast.files import read_regular
from harl_fast.runfiles import RunFolder

_RANK = "--local_rank"  # DeepSpeed's launcher gives it to ranks alone
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it for ranks alone; what they start inherits it


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
    print(usage, file=sys.stderr)
    sys.exit(2)


def markers(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return which markers there are, and of what they would not be the same files again."""
    run = RunFolder(folder)
    return {path: state for path in (run.finished, run.preempted) if (state := _state(path))}


def was_lost(marker: Path) -> bool:
    """Return whether a marker says that a run ended for lack of its guard or launcher."""
    with contextlib.suppress(OSError):
        return LOST.encode() in read_regular(marker)
    return False


def ranks_below(pid: int) -> set[psutil.Process]:
    """Return the ranks that a process has started by `deepspeed` or `torchrun`."""
    found = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ends meanwhile
                if any(word.startswith(_RANK) for word in process.cmdline()) or (
                    _TORCHRUN in process.environ()
                    and _TORCHRUN not in (process.parent() or process).environ()
                ):
                    found.add(process)
    return found


class FarRanks:
    """The ranks of a job that no signal reaches: of another machine or below a batch system.

    Make it before the job is started.
    """

    def __init__(self, folder: Path) -> None:
        self._run = RunFolder(folder)
        self._before = self._states()
        self._asked = False

    def ask(self) -> bool:
        """Ask them, once, to save and leave; return whether there are any that train."""
        if not self._asked and self._states().items() - self._before.items():
            self._run.stop.touch()
            self._asked = True
        return self._asked

    def _states(self) -> dict[Path, tuple[int, int]]:
        """Return what changes as a run writes its status, of the folder's own or of seeds."""
        files = (self._run.status, *self._run.path.glob(f"seed-*/{self._run.status.name}"))
        return {path: state for path in files if (state := _state(path))}


def _state(path: Path) -> tuple[int, int] | None:
    """Return what changes with each replacement of a file; None where there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
