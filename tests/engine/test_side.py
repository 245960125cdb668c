"""What stands beside the checkpoints is worth no run: full disks and folders that take no file."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harl_fast.config import RunConfig
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.machine import Machine
from harl_fast.engine.monitor.nonfinite import SkippedStep
from harl_fast.engine.monitor.sink import RunInfo
from harl_fast.engine.monitor.sinks import Sinks
from harl_fast.engine.pretrain import pretrain
from harl_fast.engine.runfolder import mark
from harl_fast.engine.trainer import UNSAVED, Stepper, Trainer
from harl_fast.errors import CheckpointError, HarlError
from harl_fast.runfiles import RunFolder
from harl_fast.side import SideOutputs
from tests.engine.support import (
    CPU,
    ROOT,
    STEPS,
    FakeLoader,
    prepare,
    tiny_file,
)

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1"
EPOCHS = 3
FULL = range(3, 2 * STEPS + 3)
"""The steps, from 1, during which nothing can be written: two checkpoints and sheets fall in."""


class Disk:
    """A place for a run that can be filled and freed; here every file of the process is full.

    Left as a context it is free again: pytest's own output may be a file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._limits = path, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class Tmpfs(Disk):
    """A file system in memory, filled to its last byte."""

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self.path / "ballast", "wb", buffering=0) as stream:
            while stream.write(bytes(1 << 16)):
                pass

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """Mount an empty file system in memory, or skip the test where that is not allowed."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # a checkpoint may be mapped


@pytest.fixture(params=["limit", "tmpfs"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    with contextlib.ExitStack() as stack:
        if request.param == "limit":
            (tmp_path / "disk").mkdir()
            disk = Disk(tmp_path / "disk")
        else:
            disk = Tmpfs(stack.enter_context(mounted(tmp_path / "disk", "size=24m")))
        yield disk


def prepared(machine: Machine, folder: Path, *config: str) -> Trainer:
    return prepare(machine, folder, config=config, sheet=draw)


def draw(beton: Path, config: RunConfig, out: Path, *, epoch: int) -> None:
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(PNG)


def before_steps(monkeypatch: pytest.MonkeyPatch, do: dict[int, Callable[[], None]]) -> None:
    """Do something before a step, numbered from 1."""
    advance = Stepper.advance

    def patched(self: Stepper, *args: Any, **kwargs: Any) -> None:
        do.get(self.step + 1, lambda: None)()
        advance(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "advance", patched)


def everything(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {
        f"{prefix}.{name}": tensor
        for prefix in ("online", "target", "optim")
        for name, tensor in checkpoint.tensors(prefix).items()
    }


def test_a_disk_full_for_a_while_costs_its_logs_and_no_bit_of_the_run(
    machine: Machine,
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FakeLoader, "path", Path("none"), raising=False)
    monkeypatch.setattr("harl_fast.engine.monitoring.check_same", lambda *_, **__: None)
    config = (f"epochs={EPOCHS}", "log.every_steps=1", "log.sheet_epochs=1")
    assert prepared(machine, tmp_path / "control", *config).run() == 0
    capsys.readouterr()
    run = prepared(machine, disk.path / "run", *config)
    monkeypatch.setattr("harl_fast.engine.monitor.runjson.PERIOD_S", 0.0)
    before_steps(monkeypatch, {FULL.start: disk.fill, FULL.stop: disk.free})
    with disk:
        assert run.run() == 0

    lines = capsys.readouterr().err.splitlines()
    for name in ("metrics.jsonl", "events.out.tfevents", "run.json", "sheets"):
        told = [line for line in lines if line.startswith("warning") and name in line]
        assert len(told) == 1, (name, lines)
    for step in (STEPS, 2 * STEPS):
        assert len([line for line in lines if f"CHECKPOINT NOT WRITTEN: step {step} " in line]) == 1
    assert not [line for line in lines if "Traceback" in line]
    one, other = everything(tmp_path / "control"), everything(run.folder.path)
    assert one.keys() == other.keys() and len(one) > 100
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name

    records = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    board = EventAccumulator(str(run.folder.tensorboard), size_guidance={"histograms": 0})
    board.Reload()
    for found in (
        [record["step"] for record in records],
        [event.step for event in board.Scalars("loss/total")],
        [event.step for event in board.Histograms("trust/histogram")],
    ):
        # The last page of a file may have room for a few more.
        assert found[:2] == [1, 2] and found[-4:] == [15, 16, 17, 18], found
        assert found == sorted(set(found)) and len(found) < EPOCHS * STEPS
    assert json.loads(run.folder.status.read_text())["state"] == "finished"


def test_a_disk_that_stays_full_ends_with_code_2(
    machine: Machine, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(machine, disk.path / "run", "log.every_steps=1")
    before_steps(monkeypatch, {3: disk.fill})
    with disk:
        assert run.run() == UNSAVED
    assert run.stepper.step == 2 * STEPS


def test_what_cannot_be_written_is_told_again_after_it_worked(tmp_path: Path) -> None:
    said: list[str] = []
    side, path = SideOutputs(said.append), tmp_path / "folder" / "file"
    for writable in (False, False, True, False):
        if not writable:
            path.mkdir(parents=True)  # no user, not even root, can append to a folder
        assert side.append(path, b"whole\n") == writable
        path.unlink() if writable else path.rmdir()
    assert len(said) == 2 and all(str(path) in text for text in said)


def test_a_record_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path, side = tmp_path / "file", SideOutputs(lambda text: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert side.append(path, b"first\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # room for two bytes of the second
    try:
        assert not side.append(path, b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert side.append(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", [False, True])
def test_a_pipe_in_place_of_a_log_is_not_waited_for(tmp_path: Path, read: bool) -> None:
    said: list[str] = []
    path, side = tmp_path / "metrics.jsonl", SideOutputs(said.append)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if read else None
    assert not side.append(path, b"record\n") and "metrics.jsonl cannot be written" in said[0]
    if reader is not None:
        assert os.read(reader, 9) == b""
        os.close(reader)


def test_a_run_folder_that_is_gone_does_not_come_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with Sinks(RunInfo(folder, epochs=1)) as sinks:
        shutil.rmtree(folder.path)
        sinks.skipped([SkippedStep(2, [[20, 21]])])
        sinks.write_probe(
            dict.fromkeys(("epoch", "step", "probe_knn", "probe_linear", "probe_s"), 1.0)
        )
        sinks.image("views", folder.path / "sheets" / "a.png", step=2, draw=pytest.fail)
    assert not folder.path.exists()


def test_samples_of_steps_without_effect_are_told_though_they_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    with Sinks(RunInfo(folder, epochs=1)) as sinks:
        folder.skipped.mkdir()
        sinks.skipped([SkippedStep(2, [[20, 21]])])
        folder.skipped.rmdir()
        sinks.skipped([SkippedStep(4, [[40, 41]])])
        sinks.skipped([])
    lines = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert lines[0] == "no effect: step 2: loss or gradient not finite"
    assert lines[1].endswith(f"; the samples' ids are in {folder.skipped}") and len(lines) == 2
    assert json.loads(folder.skipped.read_text()) == {"step": 4, "ids_by_rank": [[40, 41]]}


@pytest.mark.parametrize("gone", ["reader", "terminal"])
def test_a_closed_terminal_or_pipe_ends_no_run(tmp_path: Path, gone: str) -> None:
    """What is printed into it is lost; what the interpreter does at its end works too."""
    program = (
        "import os, sys; from harl_fast.files import LiveLine, try_write; sys.stdin.readline();"
        "try_write('a line\\n', sys.stderr); line = LiveLine(sys.stderr); line.tty = True;"
        "line.show('progress'); line.clear(); print('more', file=sys.stderr);"
        f"open({str(tmp_path / 'done')!r}, 'w').close()"
    )
    ours, theirs = os.pipe() if gone == "reader" else pty.openpty()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=theirs, cwd=ROOT) as job:
        os.close(theirs), os.close(ours)
        job.communicate(b"go\n", timeout=60)
    assert job.returncode == 0 and (tmp_path / "done").exists()


def test_a_marker_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finished.mkdir()
    (folder.finished / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"cannot be written to.*finished: .*A folder of this name"
    ):
        mark(folder.finished, step=1, reason="done")


def refused(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Start a run in a folder that takes no file; return the error. No work may begin."""
    monkeypatch.setattr(os, "environ", dict(os.environ))  # where a lone rank notes its place
    monkeypatch.setattr("harl_fast.engine.start.decide", lambda *_: pytest.fail("began"))
    with pytest.raises(HarlError) as error:
        pretrain(
            engine_file=CPU,
            config_name=str(tmp_path / "tiny.yaml"),
            data=tmp_path,
            run=folder / "run",
        )
    assert "\n" not in str(error.value) and not (folder / "run").exists()
    return str(error.value)


def test_a_start_in_a_read_only_file_system_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_file(tmp_path)
    with mounted(tmp_path / "disk", "size=1m,ro") as folder:
        assert "Read-only file system" in refused(tmp_path, folder, monkeypatch)


def test_a_start_on_a_full_disk_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_file(tmp_path)
    with mounted(tmp_path / "disk", "size=64k") as folder:
        disk = Tmpfs(folder)
        disk.fill()
        assert "No space left" in refused(tmp_path, folder, monkeypatch)


def test_a_start_in_a_folder_that_takes_no_file_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the two above, on machines where nothing can be mounted."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tiny_file(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        assert "File too large" in refused(tmp_path, tmp_path / "deep", monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path, tmp_path / "file", monkeypatch)
