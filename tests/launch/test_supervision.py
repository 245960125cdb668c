"""Nothing outlives what it works for: guard, launcher, ranks or terminal may go first."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harl_fast.engine.ranks import was_lost
from harl_fast.engine.stop import LOST
from harl_fast.supervision import GUARD, Process, guard_variable, supervisors
from tests.launch.jobs import ROOT

JOB = Path(__file__).with_name("standin_job.py")
RANKS = 2
SOON_S = 20.0
"""Ranks look once a second; a loaded machine may take a while."""


class Standin:
    """A stand-in for DeepSpeed, under launch/guard.py or not, and its processes by their parts."""

    def __init__(self, folder: Path, job: subprocess.Popen[bytes], *, guarded: bool) -> None:
        self.folder, self.job, self.top = folder, job, psutil.Process(job.pid)
        wait_for(lambda: len(list(folder.glob("rank-*"))) == RANKS, what="ranks start")
        self.ranks = [psutil.Process(int(path.name[5:])) for path in folder.glob("rank-*")]
        self.launcher = self.ranks[0].parent()
        self.runner = self.launcher.parent()
        self.guard = self.top if guarded else None
        self.all = [self.top, *self.top.children(recursive=True)]

    def ended(self) -> bool:
        return not any(process.is_running() and not zombie(process) for process in self.all)

    def reason(self) -> str:
        return str(json.loads((self.folder / "preempted").read_text())["reason"])


def zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    limit = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < limit, f"{what} within {SOON_S} s"
        time.sleep(0.02)


@contextlib.contextmanager
def standin(
    folder: Path, *more: str, guarded: bool = True, stderr: int | None = None
) -> Iterator[Standin]:
    """Start the job; end whatever is left of it. stderr: a terminal, which becomes its own."""
    folder.mkdir()
    (folder / "deepspeed").symlink_to(JOB)  # as the command's name
    command = [sys.executable, str(folder / "deepspeed"), "deepspeed", "--run", str(folder), *more]
    if guarded:
        command = [sys.executable, "launch/guard.py", *command]

    def own_terminal() -> None:
        os.setsid()
        if stderr is not None:
            fcntl.ioctl(stderr, termios.TIOCSCTTY, 0)

    env = {name: value for name, value in os.environ.items() if name not in ("RANK", GUARD)}
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(ROOT)},
        stderr=stderr,
        preexec_fn=own_terminal,
    )
    found = None
    try:
        found = Standin(folder, job, guarded=guarded)
        yield found
    finally:
        for process in found.all if found else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        job.kill(), job.wait()


@pytest.mark.parametrize(
    ("guarded", "victim", "name"),
    [
        (True, "guard", "launch/guard.py"),
        (False, "launcher", "its launcher"),
        (False, "runner", "deepspeed"),
    ],
)
def test_ranks_save_and_leave_when_what_looks_after_them_is_killed(
    tmp_path: Path, guarded: bool, victim: str, name: str
) -> None:
    with standin(tmp_path / "run", guarded=guarded) as job:
        dying: psutil.Process = getattr(job, victim)
        dying.kill()
        wait_for(job.ended, what="all processes end")
        assert job.reason() == f"{LOST}{name} (process {dying.pid}) is gone"


@pytest.mark.parametrize("victim", ["launcher", "runner"])
def test_a_guarded_job_that_loses_a_part_saves_and_fails(
    tmp_path: Path, victim: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with standin(tmp_path / "run") as job:
        getattr(job, victim).kill()
        assert job.job.wait(SOON_S) == 1
        wait_for(job.ended, what="all processes end")
        assert job.reason()
    assert "its launcher died: the job did not end well" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGTERM], 0),
        ([signal.SIGUSR1], 0),
        ([signal.SIGHUP], 0),
        ([signal.SIGHUP, signal.SIGTERM], 0),
        ([signal.SIGINT], 130),
    ],
)
def test_signals_to_the_guard_alone_end_all_with_a_save(
    tmp_path: Path, numbers: list[signal.Signals], code: int
) -> None:
    with standin(tmp_path / "run") as job:
        for number in numbers:
            job.top.send_signal(number)
        assert job.job.wait(SOON_S) == code
        wait_for(job.ended, what="all processes end")
        assert job.reason() == "SIGUSR1"


@pytest.mark.parametrize("more", [[], ["--deaf"]])
def test_two_interrupts_give_130_whether_ranks_had_to_be_killed_or_not(
    tmp_path: Path, more: list[str]
) -> None:
    with standin(tmp_path / "run", *more) as job:
        for _ in range(2):
            job.top.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert job.job.wait(SOON_S) == 130
        wait_for(job.ended, what="all processes end")
        if not more:  # in order: a real rank notes in run.json how it ended
            assert len(list(job.folder.glob("interrupted-*"))) + (job.folder / "preempted").exists()


@pytest.mark.parametrize("guarded", [True, False])
def test_a_closed_terminal_ends_all_with_a_save(tmp_path: Path, guarded: bool) -> None:
    ours, theirs = pty.openpty()
    with standin(tmp_path / "run", guarded=guarded, stderr=theirs) as job:
        os.close(theirs), os.close(ours)
        wait_for(job.ended, what="all processes end")
        assert job.reason() in ("SIGUSR1", "SIGHUP")
        assert not guarded or job.job.wait(SOON_S) == 0


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as from nohup
    try:
        with standin(tmp_path / "run") as job:
            for process in job.all:
                process.send_signal(signal.SIGHUP)
            time.sleep(1.0)
            assert all(process.is_running() for process in job.all)
            job.top.terminate()
            assert job.job.wait(SOON_S) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_rank_that_starts_after_its_guard_has_ended_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["sleep", "60"]) as job:
        process = Process.of(job.pid)
        assert process is not None and process.alive()
        own = guard_variable()[GUARD]
        monkeypatch.setenv(GUARD, f"{job.pid}:{process.started}:{own.split(':', 2)[2]}")
        job.kill()
    watched = supervisors()["launch/guard.py"]
    assert watched == process and not watched.alive()


@pytest.mark.parametrize("text", ["", "nonsense", "1:2", "1:2:another machine:pid:[4026531836]"])
def test_a_guard_of_another_machine_or_container_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(GUARD, text)
    assert "launch/guard.py" not in supervisors()


def test_a_process_without_launcher_may_outlive_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv(GUARD, raising=False)
    assert supervisors() == {}


def test_a_rank_of_deepspeed_that_has_lost_its_launcher_before_it_looked_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Process 1 inherits it; in a container that may be torchrun, or deepspeed itself."""
    monkeypatch.setattr("harl_fast.supervision._PARENT", Process("1", "0"))
    monkeypatch.setattr(Process, "words", lambda self: ["/sbin/init"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("CROSS_RANK", "0")
    assert supervisors()["its launcher"] == Process("0", "")
    assert not supervisors()["its launcher"].alive()
    monkeypatch.delenv("CROSS_RANK")
    assert supervisors()["its launcher"] == Process("1", "0")


def test_a_start_that_hears_nothing_ends_too(tmp_path: Path) -> None:
    """As in a rendezvous with ranks that have left: no Python code runs in the main thread."""
    program = (
        "import ctypes, subprocess; from harl_fast.engine import stop as module;"
        "from harl_fast import supervision; supervision.DEAF_S = 0.5;"
        "gone = subprocess.Popen(['sleep', '60']); watched = supervision.Process.of(gone.pid);"
        "gone.kill(); gone.wait(); stop = module.StopSignal(supervisors={'its launcher': watched});"
        "stop.starting = True; stop.__enter__(); ctypes.CDLL(None).system(b'exec sleep 20')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=15.0)
    assert done.returncode == 1


def guarded(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch/guard.py", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_command_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = guarded("no\x1bcommand", "--run", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "error: no\\x1bcommand cannot be started: No such file or directory\n"


@pytest.mark.parametrize("marker", [b"\xff\xfe", b"", None])
def test_a_marker_that_is_no_text_is_a_marker(tmp_path: Path, marker: bytes | None) -> None:
    path = tmp_path / "finished"
    path.mkdir() if marker is None else path.write_bytes(marker)
    assert not was_lost(path)
    path = tmp_path / "preempted"
    path.write_bytes(b"\xff" + LOST.encode())
    assert was_lost(path)


def test_the_last_run_folder_of_a_command_counts_and_is_named_plainly(tmp_path: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last\x1b[31m"
    last.mkdir()
    job = ("sh", "-c", 'touch "$4/finished"', "job", "--run", str(first), "--run", str(last))
    assert guarded(*job, "--run", str(last)).returncode == 0
    told = guarded("true", f"--run={last}").stderr
    assert "\x1b" not in told and "last\\x1b[31m: it has no new marker" in told


def test_the_guard_says_what_it_does() -> None:
    command, env = [sys.executable, "launch/guard.py", "--help"], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: guard.py" in done.stdout and "SIGTERM" in done.stdout


def test_a_rank_that_dies_makes_the_job_fail_whatever_marker_the_other_leaves(
    tmp_path: Path,
) -> None:
    with standin(tmp_path / "run") as job:
        later = max(job.ranks, key=lambda rank: "--local_rank=1" in rank.cmdline())
        later.kill()
        assert job.job.wait(SOON_S) not in (0, None)
        wait_for(job.ended, what="all processes end")
        assert job.reason() == "SIGTERM"  # the launcher's, of which the guard knows nothing
