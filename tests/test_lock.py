"""One writer at a time: who gets a lock, who is told what, and which locks are taken over."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harl_fast import lock as module
from harl_fast.errors import HarlError
from harl_fast.lock import (
    FOLDER_LOCK,
    discard_folder,
    holder,
    locked,
    write_new,
)
from harl_fast.supervision import stat_fields
from tests.full import FullStream

ROOT = Path(__file__).parents[1]


def owner(**changes: Any) -> module.Owner:
    return dataclasses.replace(module._this_process(), **changes)


def leave(path: Path, **changes: Any) -> module.Owner:
    """Write the lock of another process."""
    left = owner(**changes)
    assert write_new(path, json.dumps(dataclasses.asdict(left)))
    return left


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_held_by_one_and_released_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / FOLDER_LOCK
    with locked(path, output=tmp_path):
        assert holder(path) is not None
        with pytest.raises(HarlError) as caught, locked(path, output=tmp_path):
            pass
        found = json.loads(path.read_text())
        for words in (f"process {os.getpid()}", str(path), str(tmp_path), found["host"], "delete"):
            assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == [] and holder(path) is None
    with pytest.raises(ZeroDivisionError), locked(path, output=tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", ["lock deleted", "folder deleted", "taken over", "damaged"])
def test_a_lock_that_was_lost_is_not_held(tmp_path: Path, loss: str) -> None:
    folder = tmp_path / "run"
    path = folder / FOLDER_LOCK
    with locked(path, output=folder) as lock:
        assert lock.still_held()
        path.unlink()
        if loss == "folder deleted":
            folder.rmdir()
        elif loss == "taken over":
            leave(path)
        elif loss == "damaged":
            path.write_text("{}")
        assert not lock.still_held()
    assert path.exists() == (loss in ("taken over", "damaged"))


def test_a_full_disk_of_the_log_stops_no_taking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FOLDER_LOCK
    leave(path, pid=ended_pid())
    monkeypatch.setattr("sys.stderr", FullStream())
    with locked(path, output=tmp_path) as lock:
        assert lock.still_held()
        path.unlink()
        path.mkdir()  # cannot be removed, which is told


def test_a_folder_that_was_made_for_the_lock_goes_with_it(tmp_path: Path) -> None:
    new = tmp_path / "new"
    with locked(new / FOLDER_LOCK, output=new):
        pass
    assert not new.exists()
    with locked(new / FOLDER_LOCK, output=new):
        (new / "result").write_text("x")
    assert [path.name for path in new.iterdir()] == ["result"]
    with locked(new / FOLDER_LOCK, output=new):
        (new / "result").unlink()
        (new / FOLDER_LOCK).unlink()
        new.rmdir()  # the work may do so, as for a new run over an old one


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": None},
        {"started": 1},  # the number belongs to a later process
        {"boot": "another start", "time": 1.0},
    ],
    ids=["ended", "number used again", "restarted"],
)
def test_the_lock_of_a_process_that_is_gone_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    path = tmp_path / FOLDER_LOCK
    leave(path, **{key: value or ended_pid() for key, value in changes.items()})
    with locked(path, output=tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert capsys.readouterr().err.count("is taken over from process") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_a_folder_that_is_written_is_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, copy = tmp_path / "run", tmp_path / "copy"
    with locked(first / FOLDER_LOCK, output=first) as held:
        shutil.copytree(first, copy)
        assert holder(copy / FOLDER_LOCK) is None
        with locked(copy / FOLDER_LOCK, output=copy) as other:
            assert f"is taken over from {held.owner}, which writes to {first}" in (
                capsys.readouterr().err
            )
            assert held.still_held() and other.still_held()
            shutil.copytree(copy, tmp_path / "third")
            assert holder(tmp_path / "third" / FOLDER_LOCK) is None
    assert not [*first.parent.glob("run*"), *copy.iterdir()]


@pytest.mark.parametrize("way", ["link to the folder", "link to the file", "moved", "no path"])
def test_another_path_of_the_same_lock_is_in_use(tmp_path: Path, way: str) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    run.mkdir()
    with locked(run / FOLDER_LOCK, output=run):
        if way == "link to the folder":
            again.symlink_to(run)
        elif way == "link to the file":
            again.mkdir()
            os.link(run / FOLDER_LOCK, again / FOLDER_LOCK)
        elif way == "moved":
            run.rename(again)
        else:  # of an earlier version
            tree = json.loads((run / FOLDER_LOCK).read_text())
            del tree["path"]
            again.mkdir()
            (again / FOLDER_LOCK).write_text(json.dumps(tree))
        with pytest.raises(HarlError, match="is in use"), locked(again / FOLDER_LOCK, output=again):
            pass


def test_a_process_that_ended_and_was_not_waited_for_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    limit = time.monotonic() + 30
    while stat_fields(child.pid)[0] != "Z" and time.monotonic() < limit:
        time.sleep(0.01)
    leave(tmp_path / FOLDER_LOCK, pid=child.pid, started=int(stat_fields(child.pid)[19]))
    assert holder(tmp_path / FOLDER_LOCK) is None
    child.wait()


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "node7", "boot": "of node7", "time": 1.0},
        {"boot": "of one of the same name", "time": time.time()},
        {"namespace": "pid:[1]", "pid": 2**31 - 1},
    ],
    ids=["another host", "another of this name", "another container"],
)
def test_what_cannot_be_judged_is_explained(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / FOLDER_LOCK
    left = leave(path, **changes)
    before = path.read_text()
    with pytest.raises(HarlError) as caught, locked(path, output=tmp_path):
        pass
    for words in (f"process {left.pid} on {left.host}", "since ", f"delete {path}"):
        assert words in str(caught.value)
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


BROKEN = {
    "empty": b"",
    "half": b'{"token": "12',
    "binary": bytes(range(256)),
    "another type": b"[]",
    "wrong types": b'{"token": 1, "host": [], "pid": "x"}',
    "many digits": b'{"pid": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 20000,
}


@pytest.mark.parametrize("kind", [*BROKEN, "a path as token", "control characters", "no process"])
def test_a_file_that_is_no_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "_HALF_WRITTEN_S", 0.1)
    path = tmp_path / FOLDER_LOCK
    changes: dict[str, Any] = {
        "a path as token": {"token": "../../elsewhere".ljust(32, "0")},
        "control characters": {"host": "\x1b[2J"},
        "no process": {"pid": -1},
    }
    if kind in BROKEN:
        path.write_bytes(BROKEN[kind])
    else:
        leave(path, **changes[kind])
    told = pytest.raises(HarlError, match=r"is no lock .* Delete it")
    with told as caught, locked(path, output=tmp_path):
        pass
    assert len(str(caught.value)) < 400 and str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["link to nothing", "pipe", "folder"])
def test_other_things_of_that_name_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "_HALF_WRITTEN_S", 0.1)
    path = tmp_path / FOLDER_LOCK
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(HarlError, match=FOLDER_LOCK), locked(path, output=tmp_path):
        pass


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = tmp_path / "file"
    told = pytest.raises(HarlError, match=r"cannot be written to: .*\.lock: (File|Not)")
    with told, locked(file / FOLDER_LOCK, output=file):
        pass


@pytest.mark.parametrize("kind", ["no links", "answer lost"])
def test_file_systems_without_links_and_servers_that_lose_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    link = os.link

    def failing(source: Path, target: Path) -> None:
        if kind == "answer lost":
            link(source, target)
        raise OSError(17 if kind == "answer lost" else 1, "refused")

    monkeypatch.setattr(os, "link", failing)
    path = tmp_path / FOLDER_LOCK
    with locked(path, output=tmp_path):
        monkeypatch.setattr(os, "link", link if kind == "answer lost" else failing)
        with pytest.raises(HarlError, match="in use"), locked(path, output=tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def race(path: Path, ready: Any, go: Any, done: Any, results: Any) -> None:
    ready.release()
    go.wait()
    try:
        with locked(path, output=path.parent):
            results.put(os.getpid())
            done.wait()
    except HarlError:
        results.put(0)


@pytest.mark.parametrize("kind", ["free", "left", "left while taken over"])
def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path, kind: str) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(3):
        path = tmp_path / str(number) / FOLDER_LOCK
        if kind != "free":
            left = leave(path, pid=ended_pid())
        if kind == "left while taken over":
            leave(path.with_name(f".{left.token}.lock"), pid=ended_pid())
        ready, results = context.Semaphore(0), context.Queue()
        go, done = context.Event(), context.Event()
        others = [
            context.Process(target=race, args=(path, ready, go, done, results), daemon=True)
            for _ in range(8)
        ]
        for other in others:
            other.start()
        for _ in others:
            ready.acquire()
        go.set()
        found = [results.get(timeout=30) for _ in others]
        done.set()
        for other in others:
            other.join(30)
        assert sum(pid > 0 for pid in found) == 1, found
        assert not path.parent.exists() or list(path.parent.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from harl_fast.lock import locked
with locked(Path(sys.argv[1]), output=Path(sys.argv[1]).parent):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_owner_leaves_a_lock_that_the_next_takes_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / FOLDER_LOCK
    command = [sys.executable, "-c", HOLD, str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        told = pytest.raises(HarlError, match=f"process {process.pid} on")
        with told, locked(path, output=tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(path, output=tmp_path):
            pass
    assert f"process {process.pid}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_release_its_parents_lock(tmp_path: Path) -> None:
    path = tmp_path / FOLDER_LOCK
    holding = locked(path, output=tmp_path)
    holding.__enter__()
    child = os.fork()
    if child == 0:
        holding.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    assert path.is_file()
    holding.__exit__(None, None, None)
    assert not path.is_file()


def test_a_folder_in_use_is_not_discarded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder / FOLDER_LOCK, output=folder):
        (folder / "result").write_text("x")
        with pytest.raises(HarlError, match="is in use by"):
            discard_folder(folder)
    discard_folder(folder)
    assert not folder.exists()


def test_a_file_is_written_new_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    assert write_new(path, "one") and not write_new(path, "two")
    assert path.read_text() == "one" and len(list(path.parent.iterdir())) == 1


def test_a_full_disk_names_the_file_that_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as of a descriptor: no name

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_new(tmp_path / "masks.json", "{}")
    assert caught.value.filename == str(tmp_path / "masks.json")
    assert not list(tmp_path.iterdir())
