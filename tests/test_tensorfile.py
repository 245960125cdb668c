"""Safetensors files: any name, and errors that say which file and why."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from harl_fast.engine.checkpoint.format import save_tensors
from harl_fast.files import UnusualFileError, replacing
from harl_fast.tensorfile import open_tensors

TENSORS = {"a": torch.arange(30_000.0)}


@pytest.mark.parametrize("name", [b"plain", b"caf\xe9", b"a\nb", "ä".encode()])
def test_a_file_of_any_name_is_written_and_read(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name) / "x.safetensors"
    path.parent.mkdir()
    save_tensors(path, TENSORS, metadata={"key": "value"})
    with open_tensors(path) as found:
        assert found.metadata() == {"key": "value"} and list(found.keys()) == ["a"]
        assert torch.equal(found.get_tensor("a"), TENSORS["a"])


def test_a_limit_of_the_file_system_is_an_error_of_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "x.safetensors"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as caught, replacing(path) as temporary:
            save_tensors(temporary, TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnusualFileError, match="named pipe"), open_tensors(tmp_path / "pipe"):
        pass
