"""Programs that are told to end clean up, and end with the one that started them."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harl_fast.supervision import Process

ROOT = Path(__file__).parents[1]
SOON_S = 20.0

WRITER = """
import sys, time
from pathlib import Path
from harl_fast.program import run_main
from harl_fast.files import replacing

def main():
    with replacing(Path(sys.argv[1]) / "result") as temporary:
        temporary.write_text("half")
        (Path(sys.argv[1]) / "ready").touch()
        try:
            time.sleep(60)
        finally:
            time.sleep(0.5)  # a clean-up that takes its time
            (Path(sys.argv[1]) / "clean").touch()
    return 0

run_main(main)
"""
PARENT = f"""
import sys
from pathlib import Path
from harl_fast.program import run_main
from harl_fast.supervision import run_below
run_main(lambda: run_below([sys.executable, "-c", {WRITER!r}, sys.argv[1]], cwd=Path.cwd()))
"""
POOL = """
import os, sys, time
from pathlib import Path
from harl_fast.pool import ordered_map

def busy(folder):
    (folder / f"worker-{os.getpid()}").touch()
    time.sleep(60)

if __name__ == "__main__":
    list(ordered_map(busy, [Path(sys.argv[1])] * 2, workers=2, describe=str))
"""


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    limit = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < limit, f"{what} within {SOON_S} s"
        time.sleep(0.02)


def start(program: str, folder: Path, **more: object) -> subprocess.Popen[bytes]:
    """Start a program; return once it works."""
    path = folder / "program.py"
    path.write_text(program)
    job = subprocess.Popen(
        [sys.executable, str(path), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        **more,  # type: ignore[call-overload]
    )
    wait_for(lambda: any(folder.glob("ready")) or program == POOL, what="it works")
    return job  # type: ignore[no-any-return]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"program.py", "ready"}


@pytest.mark.parametrize("program", [WRITER, PARENT], ids=["alone", "below another"])
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGHUP, signal.SIGTERM]],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_signals_end_a_program_with_130_after_its_clean_up(
    tmp_path: Path, program: str, numbers: list[signal.Signals]
) -> None:
    job = start(program, tmp_path, stderr=subprocess.PIPE)
    for number in numbers:
        job.send_signal(number)
        time.sleep(0.2)
    _, errors = job.communicate(timeout=SOON_S)
    assert job.returncode == 130 and errors.count(b"interrupted") == errors.count(b"\n") == 1
    assert left(tmp_path) == {"clean"}


def test_a_program_below_a_killed_one_cleans_up_and_ends(tmp_path: Path) -> None:
    job = start(PARENT, tmp_path)
    job.kill(), job.wait()
    wait_for(lambda: left(tmp_path) == {"clean"}, what="it cleans up")


def test_under_nohup_a_closed_terminal_interrupts_no_program(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as from nohup
    try:
        job = start(WRITER, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    job.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(0.5)
    job.terminate()
    assert job.wait(SOON_S) == 130


def test_a_program_whose_terminal_is_closed_cleans_up(tmp_path: Path) -> None:
    """And is not stopped in that by what it prints, for which there is no place left."""
    ours, theirs = pty.openpty()
    job = start(WRITER, tmp_path, stderr=theirs)
    os.close(theirs), os.close(ours)
    job.send_signal(signal.SIGHUP)
    assert job.wait(SOON_S) == 130
    assert left(tmp_path) == {"clean"}


def test_workers_end_with_a_killed_program_though_their_task_lasts(tmp_path: Path) -> None:
    job = start(POOL, tmp_path)
    wait_for(lambda: len(left(tmp_path)) == 2, what="workers work")
    workers = [Process.of(name.partition("-")[2]) for name in left(tmp_path)]
    job.kill(), job.wait()
    wait_for(lambda: not any(worker and worker.alive() for worker in workers), what="they end")


def test_a_process_that_cannot_be_looked_at_is_taken_for_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rank that has used up its open files must not take its launcher for dead."""
    process = Process.of(os.getpid())
    assert process is not None and process.parent() == Process.of(os.getppid())

    def full(*args: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", full)
    assert process.alive() and Process.of(os.getpid()) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_an_import_is_done(tmp_path: Path, number: int) -> None:
    """Libraries turn one within their imports into errors of their own, or swallow it."""
    (tmp_path / "slow.py").write_text(
        "import time\ntry:\n    print('begun', flush=True)\n    time.sleep(0.5)\n"
        "except BaseException as error:\n    raise ImportError('half there') from error\n"
    )
    body = """
import time
from harl_fast.program import run_main
def main():
    import slow
    print("imported", flush=True)
    time.sleep(20)
run_main(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", body],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (130, "interrupted: no file is left half-written\n")
    assert out in ("", "imported\n")


def test_an_interrupt_after_the_end_prints_no_trace() -> None:
    body = """
import atexit, os, signal
from harl_fast.program import run_main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
run_main(lambda: 0)
"""
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
