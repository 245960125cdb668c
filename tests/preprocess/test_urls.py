"""Containers go to stores behind URLs, and images come from there, as from folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from harl_fast.errors import ConfigError, DataError, HarlError, OutputError
from preprocess import beton, urls
from tests.preprocess.support import contents, image_folder


@pytest.fixture(autouse=True)
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and what a folder gets of them."""
    data = image_folder(tmp_path_factory.mktemp("images"), classes=2, train=8, val=2)
    out = tmp_path_factory.mktemp("out")
    run(data, out)
    return data, out


def run(data: object, out: object, *more: str) -> None:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", "16", "--shard-size", "6"]
    assert beton.main([*fixed, "--workers", "1", "--mask-method", "full", *more]) == 0


def downloaded(store: Any, folder: Path) -> Path:
    store.get("/bucket/set/", str(folder), recursive=True)
    return folder


def test_a_url_gets_what_a_folder_gets(
    sets: tuple[Path, Path], tmp_path: Path, store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run(sets[0], "memory://bucket/set")
    assert contents(downloaded(store, tmp_path / "copy")) == contents(sets[1])
    assert "3 shards" in capsys.readouterr().out
    run(sets[0], "memory://bucket/set", "--shard-size", "100")  # the set's place is taken
    found = sorted(path.rpartition("/")[2] for path in store.find("/bucket/set"))
    suffixes = ("beton", "json", "names.txt", "prints.npy", "report.json", "sums.npy")
    assert found == [f"{split}.{suffix}" for split in ("train", "val") for suffix in suffixes]


class Crash(BaseException):
    """The end of a process, here and now."""


@pytest.mark.parametrize("crash_at", [3, 8, 14, 20, 26, 33, 40, 47, 55])
def test_a_crash_at_any_call_is_continued(
    sets: tuple[Path, Path],
    tmp_path: Path,
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
    crash_at: int,
) -> None:
    """Counted are the calls that change the store; the lock of a crash is deleted by hand."""
    calls = [0]

    def counted(name: str) -> Any:
        real = getattr(MemoryFileSystem, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] > crash_at:
                raise Crash
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch, pytest.raises(Crash):
        for name in ("put_file", "pipe_file", "mv", "rm_file"):
            patch.setattr(MemoryFileSystem, name, counted(name))
        run(sets[0], "memory://bucket/set")
    with pytest.raises(HarlError, match=r"set/\.writer\.lock: in use by process"):
        run(sets[0], "memory://bucket/set")
    store.rm_file("/bucket/set/.writer.lock")
    run(sets[0], "memory://bucket/set")
    assert contents(downloaded(store, tmp_path / "copy")) == contents(sets[1])


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    monkeypatch.setattr(beton, "read_source", no_work)
    with pytest.raises(OutputError, match=r"--out memory://bucket/set cannot be written: Access D"):
        run(sets[0], "memory://bucket/set")
    with pytest.raises(ConfigError, match=r"nosuch://x: Protocol not known.*pip install s3fs"):
        run(sets[0], "nosuch://x")


def test_images_come_from_a_url_and_are_copied_once(
    sets: tuple[Path, Path], tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(f"{sets[0]}/", f"/bucket/{sets[0].name}/", recursive=True)
    url = f"memory://bucket/{sets[0].name}"
    run(url, tmp_path / "out")
    copy = tmp_path / "out" / "download" / sets[0].name
    assert copy.is_dir()
    fetched = list[str]()
    real = MemoryFileSystem.get_file

    def get_file(self: Any, path: str, *rest: Any, **options: Any) -> None:
        fetched.append(path)
        real(self, path, *rest, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    gone = f"/bucket/{sets[0].name}/train/class0/0.jpg"
    store.pipe_file(gone.replace("0.jpg", "new.jpg"), b"\xff\xd8\xff")
    store.rm_file(gone)
    assert urls.mirror(url, tmp_path / "out" / "download") == copy
    assert fetched == [gone.replace("0.jpg", "new.jpg")]
    assert not (copy / "train" / "class0" / "0.jpg").exists()
    (tmp_path / "out" / "download").rename(tmp_path / "download")
    assert contents(tmp_path / "out") == contents(sets[1])
    with pytest.raises(DataError, match=r"memory://bucket/none (holds no files|cannot be read)"):
        run("memory://bucket/none", tmp_path / "other")


def test_locks_of_stores_are_taken_over_only_from_the_dead(
    sets: tuple[Path, Path], store: Any
) -> None:
    place = urls.UrlPlace("memory://bucket/set")
    with place.locked():
        owner = json.loads(store.cat_file("/bucket/set/.writer.lock"))
        with pytest.raises(HarlError, match="in use by"), place.locked():
            pass
    assert not store.exists("/bucket/set/.writer.lock")
    store.pipe_file("/bucket/set/.writer.lock", json.dumps({**owner, "pid": 2**30}).encode())
    with place.locked():
        pass
    store.pipe_file("/bucket/set/.writer.lock", b"{}")
    with pytest.raises(HarlError, match="is no lock of this program"), place.locked():
        pass
