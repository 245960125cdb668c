"""Containers go to stores behind URLs, and images come from there, as from folders."""

from __future__ import annotations

import json
import pickle
import threading
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


def test_a_place_goes_to_a_process_elsewhere(tmp_path: Path) -> None:
    """As tasks of a cluster need it: the copy writes there, with temporary files of its own."""
    place = urls.UrlPlace("memory://bucket/set")
    other = pickle.loads(pickle.dumps(place))
    assert str(other) == str(place)
    with other.staging("folder") as fresh:
        (fresh / "a.json").write_text('{"a": 1}')
    assert place.exists("folder") and place.read("folder/a.json") == {"a": 1}


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
    (copy,) = (tmp_path / "out" / "download").glob(f"{sets[0].name}-????????/{sets[0].name}")
    fetched = list[str]()
    real = MemoryFileSystem.get_file

    def get_file(self: Any, path: str, *rest: Any, **options: Any) -> None:
        fetched.append(path)
        real(self, path, *rest, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    gone = f"/bucket/{sets[0].name}/train/class0/0.jpg"
    store.pipe_file(gone.replace("0.jpg", "new.jpg"), b"\xff\xd8\xff")
    store.rm_file(gone)
    changed = gone.replace("0.jpg", "1.jpg")
    store.pipe_file(changed, bytes(store.info(changed)["size"]))  # of the same size
    assert urls.mirror(url, tmp_path / "out" / "download") == copy
    assert sorted(fetched) == [changed, gone.replace("0.jpg", "new.jpg")]
    assert not any((copy / "train" / "class0" / "1.jpg").read_bytes())
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


@pytest.mark.parametrize(
    "url",
    [
        "memory://bucket/..",
        "memory://bucket/.",
        "memory://a/../b",
        "memory://",
        "file:///",
        "s3:///",
    ],
)
def test_a_url_that_ends_in_no_name_is_refused_and_nothing_deleted(
    sets: tuple[Path, Path], tmp_path: Path, url: str
) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "mine.txt"
    mine.write_text("kept")
    with pytest.raises(ConfigError, match=r"a URL needs a name at its end"):
        run(url, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"a URL needs a name at its end"):
        run(sets[0], url)
    assert mine.read_text() == "kept"


def test_copies_go_only_into_folders_that_this_program_made(tmp_path: Path, store: Any) -> None:
    for name in ("a/set", "b/set"):
        store.pipe_file(f"/{name}/{name[0]}.jpg", b"1")
    taken = tmp_path / "set"
    taken.mkdir()
    (taken / "mine").touch()
    first, second = (urls.mirror(f"memory://{name}/set", tmp_path) for name in "ab")
    assert [path.name for path in (*first.iterdir(), *second.iterdir())] == ["a.jpg", "b.jpg"]
    assert (taken / "mine").exists()
    (first.parent / ".copied.jsonl").unlink()
    with pytest.raises(DataError, match=r"set-[0-9a-f]{8} is to hold a copy.*move it away"):
        urls.mirror("memory://a/set", tmp_path)
    assert (first / "a.jpg").exists()
    store.pipe_file(f"/bucket/{'x' * 99}.tar.gz", b"1")
    archive = urls.mirror(f"memory://bucket/{'x' * 99}.tar.gz", tmp_path)
    assert archive.name == f"{'x' * 99}.tar.gz" and archive.read_bytes() == b"1"
    store.pipe_file("/c/set/../../x.jpg", b"1")
    with pytest.raises(DataError, match=r"memory://c/set holds \.\./\.\./x\.jpg: rename it"):
        urls.mirror("memory://c/set", tmp_path)


def test_a_copy_that_changed_here_is_copied_again(tmp_path: Path, store: Any) -> None:
    for number in range(3):
        store.pipe_file(f"/bucket/set/{number}.jpg", b"%d" % number)
    place = urls.mirror("memory://bucket/set", tmp_path)
    (place / "0.jpg").write_bytes(b"")
    (place / "1.jpg").write_bytes(b"9")
    before = (place / "2.jpg").stat().st_mtime_ns
    assert urls.mirror("memory://bucket/set", tmp_path) == place
    assert [(place / f"{number}.jpg").read_bytes() for number in range(3)] == [b"0", b"1", b"2"]
    assert (place / "2.jpg").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a/1.jpg", "a//1.jpg"], r"set/a/1\.jpg and /bucket/set/a//1\.jpg, which are one file"),
        (["a/1.jpg", "a/./1.jpg"], "which are one file on this machine: rename one"),
        (["a", "a/1.jpg"], "holds /bucket/set/a as a file and as a folder"),
        (["a\0.jpg"], "rename it, without"),
    ],
)
def test_objects_that_are_no_two_files_here_are_refused_first(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, names: list[str], said: str
) -> None:
    found = {f"/bucket/set/{name}": {"size": 1, "ETag": "1"} for name in names}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: found)
    with pytest.raises(DataError, match=said):
        urls.mirror("memory://bucket/set", tmp_path)
    assert not list(tmp_path.rglob("*.jpg"))


def test_a_name_of_any_length_that_a_file_may_have_is_copied(tmp_path: Path, store: Any) -> None:
    store.pipe_file(f"/bucket/set/{'x' * 251}.jpg", b"1")
    (copy,) = urls.mirror("memory://bucket/set", tmp_path).iterdir()
    assert copy.read_bytes() == b"1"


def test_stores_that_answer_many_at_once_are_asked_so(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        store.pipe_file(f"/bucket/set/{number}.jpg", b"%d" % number)
    together, real = threading.Barrier(4), MemoryFileSystem.get_file

    def get_file(self: Any, path: str, *rest: Any, **options: Any) -> None:
        together.wait(timeout=5)
        real(self, path, *rest, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    monkeypatch.setattr(MemoryFileSystem, "async_impl", True)
    place = urls.mirror("memory://bucket/set", tmp_path)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == {
        f"{number}.jpg": b"%d" % number for number in range(8)
    }


def test_no_bucket_is_made(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of object stores begin with it; a mistyped one would be somebody's new bucket."""
    made = list[str]()
    monkeypatch.setattr(MemoryFileSystem, "makedirs", lambda self, path, **_: made.append(path))
    monkeypatch.setattr(urls, "file_system", lambda url: (store, "bucket/set"))
    urls.UrlPlace("memory://bucket/set").check()
    assert made == []


def test_what_was_copied_is_noted_even_by_a_copy_that_was_cut_off(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        store.pipe_file(f"/bucket/set/{number}.jpg", b"1")
    fetched = list[str]()
    real = MemoryFileSystem.get_file

    def get_file(self: Any, path: str, *rest: Any, **options: Any) -> None:
        if len(fetched) == 2:
            raise KeyboardInterrupt
        fetched.append(path)
        real(self, path, *rest, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MemoryFileSystem, "get_file", get_file)
        urls.mirror("memory://bucket/set", tmp_path)
    (index,) = tmp_path.glob("*/.copied.jsonl")
    index.write_bytes(index.read_bytes()[:-5])  # and the second file's line as well
    again = list[str]()
    monkeypatch.setattr(
        MemoryFileSystem,
        "get_file",
        lambda self, path, *rest, **more: (again.append(path), real(self, path, *rest, **more)),
    )
    place = urls.mirror("memory://bucket/set", tmp_path)
    assert again == [path for path in sorted(store.find("/bucket/set")) if path != fetched[0]]
    assert len(list(place.iterdir())) == 4
    # A file system that tells no more than sizes: each file is copied again.
    again.clear()
    monkeypatch.setattr(urls, "_VERSIONS", ())
    urls.mirror("memory://bucket/set", tmp_path)
    assert len(again) == 4


def test_a_store_without_credentials_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):  # botocore's is no OSError either
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(MemoryFileSystem, "find", refuse)
    told = r"^memory://bucket/set cannot be read: Unable to locate cred.*your credentials for it"
    with pytest.raises(DataError, match=told):
        run("memory://bucket/set", tmp_path / "out")


def test_a_file_url_gets_what_a_folder_gets(sets: tuple[Path, Path], tmp_path: Path) -> None:
    run(sets[0], f"file://{tmp_path}/deep/set")
    assert contents(tmp_path / "deep" / "set") == contents(sets[1])


@pytest.mark.parametrize("kinds", [("file://", ""), ("", "file://"), ("file://", "file://")])
def test_a_folder_behind_a_url_is_no_source_of_its_own_copies(
    kinds: tuple[str, str], sets: tuple[Path, Path]
) -> None:
    data, out = kinds[0] + str(sets[0]), kinds[1] + str(sets[0] / "out")
    with pytest.raises(DataError, match=f"--out {out} lies inside --data {data}; choose a folder"):
        run(data, out)
    assert not (sets[0] / "out").exists()


@pytest.mark.parametrize("data", [b"", b'{"a": ', b"\xff\xfe", b"[]"])
def test_a_damaged_note_is_told_in_one_line(store: Any, data: bytes) -> None:
    store.pipe_file("/bucket/set/note.json", data)
    with pytest.raises(DataError, match=r"^memory://bucket/set/note\.json[: ]") as refused:
        urls.UrlPlace("memory://bucket/set").read("note.json")
    assert "\n" not in str(refused.value)
