"""Containers are copied to a machine's own disk once, whole and checked, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harl_fast.data.container import staging
from harl_fast.data.container.staging import NOTE, stage
from harl_fast.data.loader import BetonLoader
from harl_fast.errors import DataError, OutputError
from harl_fast.files import Progress
from harl_fast.lock import locked
from tests.betons import plain_item, write_beton, write_checksums
from tests.data.support import VIEWS, rows
from tests.sets import split_beton

COUNT = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a container of val, and one of train and the same as a set."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("train", "val"):
        write_checksums(write_beton(folder / f"{name}.beton", plain_item, count=COUNT))
    split_beton(folder / "train.beton", folder / "sets", shards=2)
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    """Return a folder of both splits, which a test may change."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in made.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "train.report.json").write_text("{}")  # of the conversion; no training reads it
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder but the note, by relative name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != NOTE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def list_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of the files whose checksums are taken from now on."""
    read = list[Path]()
    for name in ("sha256_file", "has_digest"):
        plain = getattr(staging, name)

        def listed(path: Path, *rest: str, plain: Any = plain) -> Any:
            read.append(path)
            return plain(path, *rest)

        monkeypatch.setattr(staging, name, listed)
    return read


def test_both_splits_are_copied_with_what_training_reads(source: Path, tmp_path: Path) -> None:
    to = tmp_path / "disk" / "new"
    folder = stage(source, to, first=True)
    expected = contents(source)
    del expected["train.report.json"]
    assert contents(folder) == expected and len(expected) == 8
    assert folder.parent == to and folder.name.startswith("photos-")
    assert [path.name for path in to.iterdir()] == [folder.name]
    settings: dict[str, Any] = {"views": VIEWS, "batch_global": 4, "batch_micro": 4, "workers": 1}
    batches = [next(iter(BetonLoader(f / "train.beton", **settings))) for f in (source, folder)]
    assert rows(batches[0]) == rows(batches[1])


def test_a_set_of_containers_is_copied(made: Path, tmp_path: Path) -> None:
    folder = stage(made / "sets", tmp_path / "disk", first=True)
    assert contents(folder) == contents(made / "sets")
    assert len(list((folder / "train").glob("*.beton"))) == 2


def test_a_copy_is_kept_without_reading_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    before = {path: path.stat() for path in folder.rglob("*")}
    read = list_reads(monkeypatch)
    assert stage(source, tmp_path / "disk", first=True) == folder
    assert {path: path.stat() for path in folder.rglob("*")} == before
    assert [path.suffix for path in read] == [".json", ".json"]  # the source's manifests


def test_a_copy_that_was_touched_is_read_again_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    beton = folder / "train.beton"
    os.utime(beton, (1, 1))
    read = list_reads(monkeypatch)
    for _ in range(2):
        assert stage(source, tmp_path / "disk", first=True) == folder
    assert read.count(beton) == 1


def test_the_note_of_a_set_of_many_files_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    note = folder / NOTE
    shards = {f"train/{i:05d}-of-02000.beton": [1 << 33, 1 << 60] for i in range(2000)}
    note.write_text(json.dumps({**json.loads(note.read_text()), **shards}))
    read = list_reads(monkeypatch)
    assert stage(source, tmp_path / "disk", first=True) == folder
    assert {path.suffix for path in read} == {".json"}  # the source's manifests


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train.beton": 5}'])
def test_a_copy_whose_note_is_damaged_is_read_again(
    text: str, source: Path, tmp_path: Path
) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    whole = (folder / NOTE).read_text()
    (folder / NOTE).write_text(text)
    assert stage(source, tmp_path / "disk", first=True) == folder
    assert (folder / NOTE).read_text() == whole


def test_a_copy_that_was_emptied_is_refused(source: Path, tmp_path: Path) -> None:
    """As programs that clean scratch disks leave it: without its files and their note."""
    folder = stage(source, tmp_path / "disk", first=True)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match=rf"is no copy .*delete {folder}"):
        stage(source, tmp_path / "disk", first=True)


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_copy_that_is_none_any_more_is_refused(source: Path, tmp_path: Path, harm: str) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    beton = folder / "val.beton"
    data = beton.read_bytes()
    if harm == "gone":
        beton.unlink()
    else:
        beton.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if harm == "changed" else data[:-1])
    with pytest.raises(DataError, match=rf"val\.beton is no copy .*delete {folder}"):
        stage(source, tmp_path / "disk", first=True)
    shutil.rmtree(folder)
    assert (stage(source, tmp_path / "disk", first=True) / "val.beton").read_bytes() == data


def test_a_disk_without_room_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = sum(len(data) for data in contents(source).values()) - len("{}")
    for free in (need - 1, need):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free)
        )
        if free < need:
            with pytest.raises(
                OutputError, match=r"has 0\.0 GB free, and the containers of .* take"
            ):
                stage(source, tmp_path / "disk", first=True)
            assert not (tmp_path / "disk").exists()
        else:
            assert stage(source, tmp_path / "disk", first=True).is_dir()


def test_a_damaged_source_is_found_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    beton = source / "train.beton"
    data = bytearray(beton.read_bytes())
    data[len(data) // 2] ^= 1
    beton.write_bytes(data)
    with pytest.raises(DataError, match=rf"{beton} is not what its manifest describes"):
        stage(source, tmp_path / "disk", first=True)
    assert not (tmp_path / "disk").exists()


def test_an_interrupted_copy_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(self: Progress, count: int = 1) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", leave)
    with pytest.raises(KeyboardInterrupt):
        stage(source, tmp_path / "disk", first=True)
    assert not (tmp_path / "disk").exists()


def test_what_a_killed_process_left_is_removed(source: Path, tmp_path: Path) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    left = folder.rename(folder.with_name(f".{folder.name}.4711.tmp"))
    other = folder.with_name(".other-0123.4711.tmp")
    other.mkdir()
    assert stage(source, tmp_path / "disk", first=True) == folder
    assert not left.exists() and other.exists()


def test_names_with_brackets_match_themselves(source: Path, tmp_path: Path) -> None:
    """As in a pattern, where they would stand for one of several characters."""
    source = source.rename(tmp_path / "set[1]")
    copy = stage(source, tmp_path / "disk", first=True)
    left = copy.with_name(f".{copy.name}.77.tmp")
    copy.rename(left)
    assert stage(source, tmp_path / "disk", first=True).is_dir() and not left.exists()


def test_another_set_of_that_name_lies_beside_it(source: Path, tmp_path: Path) -> None:
    first = stage(source, tmp_path / "disk", first=True)
    write_beton(source / "train.beton", lambda index: plain_item(index + 1), count=COUNT)
    second = stage(source, tmp_path / "disk", first=True)
    assert first != second and first.is_dir() and second.is_dir()


@pytest.fixture
def waiting(source: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Start another process's part of it in a thread; the dictionary gets what it returns."""
    found: dict[str, Any] = {}

    def work() -> None:
        found["folder"] = stage(source, tmp_path / "disk", first=found.get("first", False))

    thread = threading.Thread(target=work, daemon=True)
    found |= {"thread": thread}
    yield found


def test_the_other_ranks_wait_for_the_copy(
    source: Path, tmp_path: Path, waiting: dict[str, Any]
) -> None:
    waiting["thread"].start()
    waiting["thread"].join(0.5)
    assert "folder" not in waiting and not (tmp_path / "disk").exists()
    folder = stage(source, tmp_path / "disk", first=True)
    waiting["thread"].join(10.0)
    assert waiting["folder"] == folder


def test_ranks_do_not_wait_for_ever(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "PATIENCE_S", 0.3)
    with pytest.raises(OutputError, match="the first rank of this machine"):
        stage(source, tmp_path / "disk", first=False)
    assert not (tmp_path / "disk").exists()


def test_another_job_on_the_machine_is_waited_for(
    source: Path, tmp_path: Path, waiting: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    shutil.rmtree(folder)
    with locked(folder.with_name(f".{folder.name}.lock"), output=folder):
        waiting["first"] = True
        waiting["thread"].start()
        waiting["thread"].join(0.5)
        assert "folder" not in waiting and not folder.exists()
    waiting["thread"].join(10.0)
    assert waiting["folder"] == folder and folder.is_dir()
    assert "is being copied by process" in capfd.readouterr().err


def test_jobs_that_find_the_folder_free_in_the_same_moment_take_turns(
    source: Path, tmp_path: Path, waiting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage(source, tmp_path / "disk", first=True)
    monkeypatch.setattr(staging, "holder", lambda path: None)  # what both saw
    with locked(folder.with_name(f".{folder.name}.lock"), output=folder):
        waiting["first"] = True
        waiting["thread"].start()
        waiting["thread"].join(0.5)
        assert waiting["thread"].is_alive()
    waiting["thread"].join(10.0)
    assert waiting["folder"] == folder


def test_a_set_with_a_file_missing_is_told_what_helps(made: Path, tmp_path: Path) -> None:
    sets = shutil.copytree(made / "sets", tmp_path / "sets")
    gone = min((sets / "train").glob("*.beton"))
    gone.unlink()
    told = rf"{gone}: No such file .*copies whole sets.*train on {sets} itself, where data.skip_b"
    with pytest.raises(DataError, match=told):
        stage(sets, tmp_path / "disk", first=True)


def test_a_place_that_cannot_be_written_to_is_told(source: Path) -> None:
    with pytest.raises(OutputError, match="/proc/none"):
        stage(source, Path("/proc/none"), first=True)


def test_a_folder_without_containers_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither train"):
        stage(tmp_path, tmp_path / "disk", first=True)
