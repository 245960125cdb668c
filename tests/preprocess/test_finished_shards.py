"""Shards that an earlier run of the same conversion finished are used if they are still sound."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import DataError
from preprocess import beton, build, shards
from tests.preprocess.support import contents, image_folder


def write(data: Path, out: Path, *, size: int) -> None:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", "16", "--workers", "1"]
    assert beton.main([*fixed, "--shard-size", str(size), "--mask-method", "full"]) == 0


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, what becomes of them, and a conversion of which only the last shard is missing."""
    root = image_folder(tmp_path_factory.mktemp("half") / "photos", classes=2, train=2, val=1)
    finished, out = (tmp_path_factory.mktemp(name) for name in ("finished", "out"))
    real = shards.write_shard

    def failing(place: Any, job: Any, *rest: Any) -> None:
        if job.split == "val":
            raise KeyboardInterrupt
        real(place, job, *rest)

    write(root, finished, size=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "write_shard", failing)
        write(root, out, size=2)
    return root, finished, out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("shard.beton", None, r"shard\.beton is missing"),
        ("shard.beton", b"cut", r"shard\.beton has 3 bytes"),
        ("shard.names.txt", None, r"shard\.names\.txt is missing or damaged"),
        ("shard.names.txt", b"train/class0/0.jpg\n", r"shard\.names\.txt is missing or damaged"),
        ("shard.sums.npy", b"", r"shard\.sums\.npy is missing or damaged"),
        ("shard.prints.npy", None, r"shard\.prints\.npy is missing or damaged"),
        ("shard.json", None, r"shard\.json is missing"),
        ("shard.json", b"[]", "holds a list"),
        ("shard.report.json", None, r"shard\.report\.json is missing"),
        ("shard.report.json", b"[]", "holds a list"),
        ("shard.report.json", b'{"skipped": 5}', r"skipped: .*\(got 5\)"),
    ],
)
def test_finished_shards_that_are_damaged_are_made_again(
    half_done: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    told: str,
) -> None:
    data, finished, begun = half_done
    out = tmp_path / "out"
    shutil.copytree(begun, out)
    (path,) = out.glob(f".train-*.partial/00001-*/{name}")
    path.unlink() if content is None else path.write_bytes(content)
    write(data, out, size=2)
    shown = capsys.readouterr().out
    assert re.search(rf"note: .*/00001-\w+ is damaged and made again: .*{told}", shown)
    assert "train: 1 of 2 shards are finished already" in shown
    assert contents(out) == contents(finished)


def test_a_shard_that_is_lost_before_its_files_take_their_names_is_refused(
    half_done: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, finished, begun = half_done
    out = tmp_path / "out"
    shutil.copytree(begun, out)
    (path,) = out.glob(".train-*.partial/00001-*/shard.beton")
    real = shards.write_shard

    def losing(place: Any, job: Any, *rest: Any) -> None:
        real(place, job, *rest)
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_shard", losing)
        with pytest.raises(DataError, match=r"00001-\w+: shard\.beton is missing\. Run the same"):
            write(data, out, size=2)
    assert not (out / "train").exists()
    write(data, out, size=2)
    assert contents(out) == contents(finished)
