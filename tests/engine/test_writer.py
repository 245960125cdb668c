"""Checkpoints beside the training: what blocks, what waits, and what a failed write leaves."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from harl_fast.engine.checkpoint import writer as module
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.checkpoint.writer import HostCopy, Saver
from tests.engine.support import tiny_config


def record(tmp_path: Path, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step,
        "epoch_step": 0,
        "config": tiny_config(tmp_path),
        "engine": {"train_batch_size": 16},
        "data": {"count": 100, "beton_sha256": "0" * 64},
    }


def saver(tmp_path: Path, said: list[str], *, keep_last: int = 3) -> Saver:
    (tmp_path / "run").mkdir(exist_ok=True)
    folder = tmp_path / "run" / "checkpoints"
    return Saver(folder, keep_last=keep_last, keep_every_epochs=100, warn=said.append)


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())


def test_the_copy_is_what_is_written_though_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    ours, go = saver(tmp_path, said), threading.Event()
    write = module.write_checkpoint

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert go.wait(600)
        return write(*args, **kwargs)

    def told(line: str) -> None:
        said.append(line)
        time.sleep(0.2)
        go.set()

    monkeypatch.setattr(module, "write_checkpoint", slow)
    monkeypatch.setattr(ours, "_warn", told)
    weight = torch.arange(6.0).view(2, 3)
    ours.save({"online.a": weight.t()}, record(tmp_path, 1))
    weight.add_(100.0)  # the next step, before anything is on disk
    assert not list((tmp_path / "run").rglob("step-*")) and not said
    ours.save({"online.a": weight.t()}, record(tmp_path, 2))  # has to wait, and says so
    assert len(said) == 1 and "still being written" in said[0]
    assert open_checkpoint(tmp_path / "run").record.step in (1, 2)
    assert ours.blocked_s >= 0.2
    assert ours.wait()
    saved = tmp_path / "run" / "checkpoints" / "step-00000001.safetensors"
    expected = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(open_checkpoint(saved).tensors("online")["a"], expected)
    assert torch.equal(open_checkpoint(tmp_path / "run").tensors("online")["a"], expected + 100.0)


def test_host_memory_is_used_again() -> None:
    host = HostCopy()
    first = host.take({"a": torch.zeros(3), "b": torch.ones(2, 2, 3, 3)})["a"]
    tensor = torch.full((2, 2, 3, 3), 7.0).to(memory_format=torch.channels_last)
    again = host.take({"a": torch.full((3,), 5.0), "b": tensor})
    assert again["a"].data_ptr() == first.data_ptr() and first.tolist() == [5.0] * 3
    assert again["b"].is_contiguous() and torch.equal(again["b"], tensor)
    assert host.take({"a": torch.zeros(4)})["a"].shape == (4,)  # another size: another buffer


@pytest.mark.parametrize("stage", ["save_tensors", "write_json", "write_text"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("io")])
def test_a_failed_write_is_loud_stops_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    from harl_fast.engine.checkpoint import format as checkpoint

    said: list[str] = []
    ours = saver(tmp_path, said)
    ours.save({"online.a": torch.ones(3)}, record(tmp_path, 1))
    assert ours.wait()
    before = names(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, stage, full)
        ours.save({"online.a": torch.zeros(3)}, record(tmp_path, 2))
        assert not ours.wait()
    assert ours.failures == 1 and len(said) == 1
    remedy = "Free space" if isinstance(error, OSError) else "Check that the folder"
    for words in ("ERROR", "step 2", str(error.args[-1]), "step-00000001", remedy):
        assert words in said[0]
    good = open_checkpoint(tmp_path / "run")
    assert good.record.step == 1 and torch.equal(good.tensors("online")["a"], torch.ones(3))
    if stage == "save_tensors" or (stage == "write_json" and isinstance(error, OSError)):
        assert names(tmp_path) == before  # nothing that would fill the disk
    ours.save({"online.a": torch.zeros(3)}, record(tmp_path, 3))
    assert ours.wait() and open_checkpoint(tmp_path / "run").record.step == 3


def test_an_unwritable_folder_is_told_and_works_once_it_is_writable(tmp_path: Path) -> None:
    said: list[str] = []
    ours = saver(tmp_path, said)
    folder = tmp_path / "run" / "checkpoints"
    folder.write_text("a file where the folder should be")  # stops root as well
    ours.save({"online.a": torch.ones(3)}, record(tmp_path, 1))
    assert not ours.wait() and "last good checkpoint: none" in said[0]
    assert f"{folder}: File exists. A file or broken link of this name is in the way" in said[0]
    folder.unlink()
    ours.save({"online.a": torch.ones(3)}, record(tmp_path, 2))
    assert ours.wait() and ours.failures == 1


def test_a_run_folder_that_is_gone_does_not_come_back(tmp_path: Path) -> None:
    said: list[str] = []
    ours = saver(tmp_path, said)
    (tmp_path / "run").rmdir()
    ours.save({"online.a": torch.ones(3)}, record(tmp_path, 1))
    assert not ours.wait() and "CHECKPOINT NOT WRITTEN" in said[0]
    assert not (tmp_path / "run").exists()


def test_while_steps_have_no_effect_nothing_is_deleted(tmp_path: Path) -> None:
    ours = saver(tmp_path, [], keep_last=1)
    for step, keep_all in ((1, False), (2, True), (3, True)):
        ours.save({"online.a": torch.ones(1)}, record(tmp_path, step), keep_all=keep_all)
    ours.wait()
    assert sum(name.endswith(".safetensors") for name in names(tmp_path)) == 3
    ours.save({"online.a": torch.ones(1)}, record(tmp_path, 4))
    ours.wait()
    assert names(tmp_path) == ["latest", "step-00000004.json", "step-00000004.safetensors"]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from tests.engine.test_writer import record, saver
tmp, said = Path(sys.argv[1]), []
ours = saver(tmp, said)
big = {"online.a": torch.ones(1 << 18)}
ours.save(big, record(tmp, 1))
assert ours.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))
ours.save(big, record(tmp, 2))
assert not ours.wait() and len(said) == 1, said
print(said[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ours.save(big, record(tmp, 3))
assert ours.wait()
"""


def test_a_write_that_the_system_refuses_midway(tmp_path: Path) -> None:
    """A file size limit stops the real writer after a quarter, as a full disk does."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "CHECKPOINT NOT WRITTEN" in done.stdout and "step-00000001" in done.stdout
    assert open_checkpoint(tmp_path / "run").record.step == 3
    assert not [name for name in names(tmp_path) if "00000002" in name or name.endswith(".tmp")]


def test_a_name_in_the_way_is_told_as_such(tmp_path: Path) -> None:
    said: list[str] = []
    ours = saver(tmp_path, said)
    ours.save({"online.a": torch.ones(3)}, record(tmp_path, 1))
    assert ours.wait()
    latest = tmp_path / "run" / "checkpoints" / "latest"
    latest.unlink()
    latest.mkdir()
    ours.save({"online.a": torch.ones(3)}, record(tmp_path, 2))
    assert not ours.wait()
    assert f"{latest}: Is a directory. A folder of this name is in the way: move it" in said[0]
    assert "last good checkpoint: step-0000000" in said[0] and "Free space" not in said[0]
