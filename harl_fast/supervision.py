"""Processes that must not outlive the one they work for, and signals that mean the user left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

GUARD = "HARL_FAST_GUARD"
"""Environment variable in which launch/guard.py names its own process to the ranks."""

_DEEPSPEED = "CROSS_RANK"
"""Environment variable that DeepSpeed's launcher sets for its ranks, and torchrun does not."""

PERIOD_S = 1.0
"""Time between two looks at such processes, 20 us each."""
DEAF_S = 10.0
"""How long a process with nothing to save may take to notice that one of them is gone."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""Of prctl(2)."""


@dataclass(frozen=True)
class Process:
    """A process of this machine, named for good: process numbers are used again."""

    pid: str
    started: str
    """When, in clock ticks since the machine's start."""

    @staticmethod
    def of(pid: int | str) -> Process | None:
        """Return the process that has this number now, or None if there is none to be seen."""
        with contextlib.suppress(OSError):
            if fields := _living(pid):
                return Process(str(pid), fields[19])
        return None

    def parent(self) -> Process | None:
        """Return the process that started it, if both can be seen."""
        with contextlib.suppress(OSError):
            if fields := _living(self.pid):
                return Process.of(fields[1])
        return None

    def words(self) -> list[str]:
        """Return its command line as far as it can be seen."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_text("utf-8", "replace").split("\0")
        return []

    def alive(self) -> bool:
        """Return whether it is still there, and not dead and unburied, as far as can be seen."""
        try:
            fields = _living(self.pid)
        except OSError:  # too many open files, for instance
            return True
        return bool(fields) and fields[19] == self.started


def guard_variable() -> dict[str, str]:
    """Return the environment variable by which ranks know this process as their guard."""
    own = Process.of(os.getpid())
    return {} if own is None else {GUARD: f"{own.pid}:{own.started}:{_place()}"}


def supervisors() -> dict[str, Process]:
    """Return the processes without which nobody would look after this rank, by what they are.

    launch/guard.py, where it runs on this machine; the launcher that started this process; and the
    half of DeepSpeed's launcher that a user sees and kills, which is the parent of the other half.
    Call before `this_machine`, which gives a process without launcher a launcher's variables.
    """
    found = {}
    pid, _, rest = os.environ.get(GUARD, "").partition(":")
    started, _, place = rest.partition(":")
    if place and place == _place():  # variables travel to other machines, and into containers
        found["launch/guard.py"] = Process(pid, started)
    launcher = _PARENT
    if "RANK" in os.environ and launcher:
        orphan = launcher.pid == "1" and not any("deepspeed" in word for word in launcher.words())
        if orphan and _DEEPSPEED in os.environ:
            launcher = Process("0", "")  # it ended before this process knew it
        found["its launcher"] = launcher
        above = launcher.parent()
        if above and any(Path(word).name == "deepspeed" for word in above.words()):
            found["deepspeed"] = above
    return found


@contextlib.contextmanager
def watching(
    processes: Mapping[str, Process], *, lost: Callable[[str, Process], None]
) -> Iterator[None]:
    """Look for processes once a second, and call ``lost`` in a thread for the first one gone."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for name, process in processes.items():
                if not process.alive():
                    lost(name, process)
                    return
            over.wait(PERIOD_S)

    if processes:
        threading.Thread(target=look, name="supervisors", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def leave(name: str, process: Process) -> None:
    """End this process as by SIGTERM, at the latest after `DEAF_S`: nobody else would. For a
    thread of `watching`.
    """
    print(f"error: {name} (process {process.pid}) is gone", file=sys.stderr, flush=True)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(DEAF_S)
    os._exit(1)  # the main thread waits, outside of Python, for ranks that have left


def run_below(command: Sequence[str], *, cwd: Path) -> int:
    """Run a command to its end and return its exit code; it never outlives this process.

    SIGINT, SIGTERM and SIGHUP are handed to it once each, in its own session, and waited for: its
    clean-up is done when this raises KeyboardInterrupt. It gets SIGTERM if this process is killed.
    """
    got: list[int] = []
    with answering(signal.SIGINT, signal.SIGTERM, by=lambda number, _: got.append(number)):
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
    if got:
        raise KeyboardInterrupt(TOLD) if code in (130, -signal.SIGINT) else KeyboardInterrupt
    return code


def end_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of any process below this one whose own parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextlib.contextmanager
def answering(*numbers: int, by: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Answer signals by a function for a while: these, and SIGHUP unless nohup had it ignored."""
    every = [*numbers, *[signal.SIGHUP] * heeds_hangup()]
    before = [(number, signal.signal(number, by)) for number in every]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def heeds_hangup() -> bool:
    """Return whether a closed terminal is meant to end this process: not if nohup started it."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def stat_fields(pid: int | str) -> list[str]:
    """Return stat of proc(5) from the third field on, the state; the twentieth is the start.

    Nothing if the process has ended, or is another user's and hidden (mount option hidepid).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()  # the second is its name, which may hold anything


def boot_id() -> str:
    """Return the random name of this start of the kernel, or nothing where there is none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8", "replace").strip()
    return ""


def pid_namespace() -> str:
    """Return within what a process number holds: containers on one kernel count apart."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _living(pid: int | str) -> list[str]:
    """Return `stat_fields`, but nothing of a process that is dead and unburied."""
    fields = stat_fields(pid)
    return fields if fields and fields[0] not in "ZX" else []


def _place() -> str:
    """Return what tells this machine, since its start, and this container from all others."""
    boot, namespace = boot_id(), pid_namespace()
    return f"{boot}:{namespace}" if boot and namespace else ""


TOLD = "told"
"""Argument of a KeyboardInterrupt of which the user was told already."""
_PARENT = Process.of(os.getppid())
"""Noted with the first imports: other imports take seconds, and it may end meanwhile."""
