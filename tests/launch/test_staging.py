"""Trainings on copies of their containers, under the real launcher."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harl_fast import lock
from harl_fast.data.container import staging
from harl_fast.data.container.staging import NOTE
from harl_fast.engine.stop import Leaving, StopSignal
from harl_fast.errors import HarlError
from harl_fast.runfiles import RunFolder
from launch.pretrain import main
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, CPU, tiny_file
from tests.launch.jobs import ROOT, deepspeed, run


@pytest.mark.slow
def test_two_ranks_train_on_one_copy_which_a_second_start_keeps(tmp_path: Path) -> None:
    data, disk, log = tmp_path / "data", tmp_path / "disk", tmp_path / "log"
    data.mkdir()
    write_beton(data / "train.beton", plain_item, count=100)
    command = [ROOT / "launch" / "pretrain.py", "--deepspeed_config", CPU, "--data", data]
    command += ["--run", tmp_path / "run", "--stage-to", disk, "--config", tiny_file(tmp_path)]
    command += ["--engine-set", f"train_batch_size={BATCH}"]
    refused = run([*deepspeed(2), *command, "--set", "optim.lrr=1"], log=log)
    assert refused.code != 0 and refused.lines("optim.lr"), refused.text
    assert not disk.exists()  # settings are refused before anything is copied
    for more in ((), ("--resume", "--epochs", "3")):
        result = run([*deepspeed(2), *command, *more], log=log)
        assert result.code == 0, result.text
        assert len(result.lines("copying")) == (not more), result.text
        (folder,) = disk.iterdir()
        assert (folder / "train.beton").read_bytes() == (data / "train.beton").read_bytes()
    assert set(json.loads((folder / NOTE).read_text())) == {
        f"train.{suffix}" for suffix in ("beton", "json", "names.txt")
    }


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a command line for `main` in this process, whose environment stays."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    words = ["--deepspeed_config", CPU, "--data", tmp_path, "--run", tmp_path / "run"]
    words += ["--stage-to", tmp_path / "disk", "--config", tiny_file(tmp_path)]
    return [str(word) for word in [*words, "--engine-set", f"train_batch_size={BATCH}"]]


def marker(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / "preempted").read_text())
    return found


def test_a_signal_while_containers_are_copied_leaves_a_marker(
    tmp_path: Path,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(staging, "stage", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
    for _ in range(2):  # the folder is as good as empty: the same command starts the run
        assert main(command) == 0
        assert (marker(tmp_path)["step"], marker(tmp_path)["reason"]) == (0, "SIGTERM")
        assert "stopped by SIGTERM before the first step" in capsys.readouterr().err
        assert {each.name for each in (tmp_path / "run").iterdir()} == {"preempted", "run.json"}


def test_a_signal_as_the_folder_is_taken_leaves_a_marker_and_no_lock(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "stage", lambda *a, **k: tmp_path)
    took = lock._take

    def take(path: Path, own: lock.Owner, *, output: Path) -> None:
        took(path, own, output=output)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(lock, "_take", take)
    assert main(command) == 0
    assert marker(tmp_path)["reason"] == "SIGUSR1"
    assert not (tmp_path / "run" / ".writer.lock").exists()


def test_a_stopped_start_writes_nothing_into_the_folder_of_another_run(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    with ExitStack() as other:

        def begin(*arguments: object, **more: object) -> None:
            other.enter_context(lock.locked(folder.lock, output=folder.path))
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(staging, "stage", begin)
        with pytest.raises(HarlError, match="is in use by process"):
            main(command)
        assert [each.name for each in folder.path.iterdir()] == [folder.lock.name]


def test_a_signal_before_a_start_is_answered_as_it_begins() -> None:
    for number, ending in ((signal.SIGTERM, Leaving), (signal.SIGINT, KeyboardInterrupt)):
        with StopSignal() as stop:
            signal.raise_signal(number)
            with pytest.raises(ending):
                stop.begin()
