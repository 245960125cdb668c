"""A rank on another machine goes on from what rank 0's folder holds, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor

from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.handover import hand_over, handed_over
from harl_fast.engine.machine import Machine
from harl_fast.engine.resume import open_latest
from harl_fast.engine.runfolder import run_config
from harl_fast.runfiles import RunFolder


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what runs one function as rank 0 and one as another, in two threads."""
    wire: SimpleQueue[Tensor] = SimpleQueue()

    def broadcast(tensor: Tensor) -> None:
        if threading.current_thread() is threading.main_thread():
            tensor.copy_(wire.get(timeout=60.0))
        else:
            wire.put(tensor.clone())

    monkeypatch.setattr("harl_fast.collectives.broadcast", broadcast)
    monkeypatch.setattr("harl_fast.engine.handover._CHUNK_BYTES", 1000)

    def both(rank_0: Callable[[], None], other: Callable[[], Any]) -> Any:
        thread = threading.Thread(target=rank_0)
        thread.start()
        try:
            return other()
        finally:
            thread.join()

    return both


def test_a_run_goes_on_elsewhere_from_the_same_files(
    machine: Machine, folder: Path, ranks: Callable[..., Any]
) -> None:
    def other() -> Path:
        with handed_over() as (copy, resume):
            assert resume and copy != folder
            ours, theirs = RunFolder(copy), RunFolder(folder)
            checkpoint, run_id = open_latest(ours)  # which compares checksums
            expected, expected_id = open_latest(theirs)
            assert (checkpoint.record, run_id) == (expected.record, expected_id)
            for name, tensor in open_checkpoint(theirs.path).tensors("online").items():
                assert torch.equal(checkpoint.tensors("online")[name], tensor)
            asked: Any = {"name": None, "overrides": (), "resume": True}
            assert run_config(ours, **asked) == run_config(theirs, **asked)
            assert len(list(ours.checkpoints.glob("*.safetensors"))) == 1  # and not all
        return copy

    gone = ranks(lambda: hand_over(folder, resume=True, rank=0), other)
    assert not gone.exists()


def test_rank_0_decides_whether_a_run_goes_on(tmp_path: Path, ranks: Callable[..., Any]) -> None:
    (tmp_path / "config.yaml").write_text("of no use to a new run")

    def other() -> None:
        with handed_over() as (copy, resume):
            assert not resume and not copy.exists()

    ranks(lambda: hand_over(tmp_path, resume=False, rank=0), other)
