"""Processes that must not outlive the one they work for, and signals that mean the user left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

GUARD = "HARL_FAST_GUARD"
"""Environment variable in which launch/guard.py names its own process to the ranks."""

_RANK = "--local_rank"  # DeepSpeed's launcher gives it to ranks alone
_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


@dataclass(frozen=True)
class Process:
    """A process of this machine, named for good: process numbers are used again."""

    pid: str
    started: str
    """When, in clock ticks since the machine's start."""

    @staticmethod
    def of(pid: int | str) -> Process | None:
        """Return the process that has this number now, or None if there is none."""
        fields = _stat(pid)
        return None if fields is None else Process(str(pid), fields[19])

    def alive(self) -> bool:
        """Return whether it is still there, and not dead and unburied."""
        return Process.of(self.pid) == self

    def text(self) -> str:
        """Return what names it in an environment variable."""
        return f"{self.pid}:{self.started}:{_place()}"


def supervisors() -> dict[str, Process]:
    """Return the processes without which nobody would look after this rank, by what they are.

    launch/guard.py, where it runs on this machine; the launcher that started this process; and the
    half of DeepSpeed's launcher that a user sees and kills, which is the parent of the other half.
    Call before `this_machine`, which gives a process without launcher a launcher's variables.
    """
    found: dict[str, Process | None] = {}
    pid, _, rest = os.environ.get(GUARD, "").partition(":")
    started, _, place = rest.partition(":")
    if place and place == _place():  # variables travel to other machines, and into containers
        found["launch/guard.py"] = Process(pid, started)
    if "RANK" in os.environ:
        launcher = os.getppid()
        found["its launcher"] = Process.of(launcher)
        above = (_stat(launcher) or ["", "0"])[1]
        if any(Path(word).name == "deepspeed" for word in _words(above)):
            found["deepspeed"] = Process.of(above)
    return {name: process for name, process in found.items() if process is not None}


def ranks_below(launcher: int) -> set[psutil.Process]:
    """Return the ranks that a launcher has started, itself or by others."""
    found = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(launcher).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ends meanwhile
                if any(word.startswith(_RANK) for word in process.cmdline()):
                    found.add(process)
    return found


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def run_below(command: Sequence[str], *, cwd: Path) -> int:
    """Run a command to its end and return its exit code; it never outlives this process.

    SIGINT, SIGTERM and SIGHUP are handed to it once each, in its own session, and waited for: its
    clean-up is done when this raises KeyboardInterrupt. It gets SIGTERM if this process is killed.
    """
    got: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * heeds_hangup()]
    before = [(one, signal.signal(one, lambda number, _: got.append(number))) for one in numbers]
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )
        handed = 0
        while (code := child.poll()) is None:
            time.sleep(0.1)
            while handed < len(got):
                child.send_signal(got[handed])
                handed += 1
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if got:
        raise KeyboardInterrupt
    return code


def end_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def heeds_hangup() -> bool:
    """Return whether a closed terminal is meant to end this process: not if nohup started it."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def _stat(pid: int | str) -> list[str] | None:
    """Return stat(5) from the third field on, the state; None if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the second is its name, which may hold anything
    return None if fields[0] in "ZX" else fields


def _words(pid: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
    return []


def _place() -> str:
    """Return what tells this machine, since its start, and this container from all others."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    return ""
