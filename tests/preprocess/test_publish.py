"""Files take their names together: what a crash leaves is finished, and is never a mixture."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import DataError, OutputError
from harl_fast.files import write_text
from preprocess.places import LocalPlace
from preprocess.publish import NOTE, Moves, finish, publish


class Crash(BaseException):
    """The end of a process, here and now."""


OLD, NEW = "the old set", "the new set"
SETS = {"a": ("a.beton", "a.names.txt"), "b": ("b/0.beton", "b/1.beton")}
FINAL = sorted(["a.json", "b.json", *SETS["a"], *SETS["b"]])


def prepared(folder: Path) -> tuple[LocalPlace, Moves]:
    """Write an old set and a new one beside it; return what replaces the one by the other.

    The old b is a single file under another name, which has to go.
    """
    for name in ("a.json", "b.json", "b.beton", *SETS["a"]):
        write_text(folder / name, OLD)
    for name in FINAL:
        write_text(folder / ".work" / name, NEW)
    aside = [(name, f".replaced.tmp/{name}") for name in ("a.json", "b.json", "a.beton")]
    aside += [(name, f".replaced.tmp/{name}") for name in ("a.names.txt", "b.beton")]
    moves = [(f".work/{name}", name) for names in SETS.values() for name in names]
    last = [(f".work/{name}", name) for name in ("a.json", "b.json")]
    return LocalPlace(folder), Moves("key", [aside, moves, last], [".work"])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def counted(real: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """Return a function that crashes instead of its call number ``calls[0]``, from 0."""

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] -= 1
        if calls[0] == -1:
            raise Crash
        return real(*arguments, **options)

    return call


def test_a_crash_leaves_no_manifest_of_others_files_and_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash before each call that changes the folder."""
    seen, crashes = set[str](), 0
    for crash_at in range(40):
        folder = tmp_path / str(crash_at)
        place, moves = prepared(folder)
        with monkeypatch.context() as patch:
            calls = [crash_at]
            for module, name in ((os, "replace"), (os, "unlink"), (shutil, "rmtree")):
                patch.setattr(module, name, counted(getattr(module, name), calls))
            try:
                publish(place, moves)
            except Crash:
                crashes += 1
        for kind, others in SETS.items():
            if not (folder / f"{kind}.json").is_file():
                seen.add("none")
                continue
            text = (folder / f"{kind}.json").read_text()
            if text == NEW:
                assert {(folder / name).read_text() for name in others} == {NEW}
            else:
                own = others if kind == "a" else ("b.beton",)
                assert {(folder / name).read_text() for name in own} == {OLD}
            seen.add(text)
        if calls[0] >= 0:
            break
        key = finish(place)
        if (folder / ".work").exists():  # it crashed before its note was written
            assert key == "" and (folder / "a.json").read_text() == OLD
            continue
        assert files(folder) == FINAL and {(folder / name).read_text() for name in FINAL} == {NEW}
    assert seen == {OLD, NEW, "none"} and crashes > len(FINAL)
    assert files(folder) == FINAL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_files_move_waits_until_the_set_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """With another thread there, which the kernel may give the signal to."""
    place, moves = prepared(tmp_path)
    real, done = os.replace, threading.Event()

    def signalled(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target).suffix == ".beton":
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    threading.Thread(target=done.wait).start()
    monkeypatch.setattr(os, "replace", signalled)
    try:
        with pytest.raises(KeyboardInterrupt):
            publish(place, moves)
    finally:
        done.set()
        signal.signal(number, before)
    assert files(tmp_path) == FINAL


def test_what_could_not_move_stays_and_moves_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, moves = prepared(tmp_path)
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if str(target).endswith("a.names.txt") and ".replaced" not in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match=r"the new files are whole, but .*a\.names\.txt: No"):
            publish(place, moves)
    assert not (tmp_path / "a.json").exists() and (tmp_path / ".work" / "a.json").exists()
    assert finish(place) == "key" and files(tmp_path) == FINAL
    assert finish(place) == ""


@pytest.mark.parametrize(
    "note",
    [
        {"key": "k", "groups": [], "clean": ["../precious"]},
        {"key": "k", "groups": [[["../letter.txt", "a"]]], "clean": []},
        {"key": "k", "groups": [], "clean": [], "done": 3},
        {"key": "k"},
        {"key": "k", "groups": [[["a"]]], "clean": []},
        {"key": "k", "groups": 7, "clean": [1]},
        ["no", "object"],
    ],
)
def test_a_note_of_other_files_is_refused(tmp_path: Path, note: object) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    for folder in (out, precious):
        folder.mkdir()
    (out / NOTE).write_text(json.dumps(note))
    with pytest.raises(DataError, match=r"publish\.json"):
        finish(LocalPlace(out))
    assert precious.is_dir()
