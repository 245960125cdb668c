"""Safetensors files: any name, and errors that say which file and why."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from harl_fast.eval.cache import FeatureCache
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.results import Head, write_head
from harl_fast.files import UnusualFileError, replacing
from harl_fast.tensorfile import open_tensors, save_tensors

TENSORS = {"a": torch.arange(30_000.0)}


@pytest.mark.parametrize("name", [b"plain", b"caf\xe9", b"a\nb", "ä".encode()])
def test_a_file_of_any_name_is_written_and_read(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name) / "x.safetensors"
    path.parent.mkdir()
    save_tensors(path, TENSORS, metadata={"key": "value"})
    with open_tensors(path) as found:
        assert found.metadata() == {"key": "value"} and list(found.keys()) == ["a"]
        assert torch.equal(found.get_tensor("a"), TENSORS["a"])


def test_a_file_may_be_read_by_whom_other_new_files_may(tmp_path: Path) -> None:
    """The library alone makes files of tensors their owner's: features and heads are shared."""
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "x.safetensors", TENSORS)
        head = Head(TENSORS["a"][None], torch.zeros(1))
        write_head(tmp_path / "head.safetensors", head, classes=["a"])
        FeatureCache(tmp_path).get(
            {}, lambda: FeatureSet(torch.ones(3, 2), torch.arange(3)), name="kept"
        )
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o640] * 3


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
