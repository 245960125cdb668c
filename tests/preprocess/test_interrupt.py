"""An interrupted or killed program leaves no file under a final name, no process, no memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.preprocess.support import image_folder

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} within {seconds} s"
        time.sleep(0.02)


def group(leader: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@contextmanager
def running(data: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the program as a process group of its own; wait until it writes; end it in any case."""
    command = [sys.executable, "-m", "preprocess.beton", "--data", data, "--out", out]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes them, and so this, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(
            lambda: any(out.glob(".train-*/.new.*/shard.beton")),
            seconds=600,
            what="the program writes",
        )
        yield process
    finally:
        for pid in group(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images to be still at work when the signal comes."""
    root = image_folder(tmp_path_factory.mktemp("many"))
    for split, source in (("train", "train/class0/0.jpg"), ("val", "val/class0/0.jpg")):
        for index in range(3000):
            (root / split / "class0" / f"link{index}.jpg").symlink_to(root / source)
    return root


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        signal.SIGKILL,
    ],
)
def test_a_signal_ends_everything(many: Path, tmp_path: Path, number: signal.Signals) -> None:
    out, memory = tmp_path / "out", set(SHARED_MEMORY.glob("psm_*"))
    out.mkdir()
    with running(many, out) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        wait_for(lambda: not group(process.pid), seconds=30, what="no worker stays")
    final = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    assert final == []
    # Tests in other processes have such blocks for a moment; what is lost stays.
    new = set(SHARED_MEMORY.glob("psm_*")) - memory
    wait_for(lambda: not any(path.exists() for path in new), seconds=30, what="no block stays")
    if number == signal.SIGKILL:
        return  # nobody is left to say anything or to remove the temporary file
    assert process.returncode == 130
    assert "no file is left half-written" in errors
    assert "Traceback" not in errors
    assert list(out.iterdir()) == []
