"""Whole files, sets of files, checked outputs, and the progress line."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harl_fast import files
from harl_fast.errors import OutputError
from harl_fast.files import Progress, check_output, replacing, replacing_together, write_text

REAL_FSYNC = os.fsync


Kind = Callable[[int], bool]


def failing_fsync(number: int, *, of: Kind = stat.S_ISDIR) -> Callable[[int], None]:
    """Return an fsync that fails with an error number on folders, or on files of another kind."""

    def fsync(handle: int) -> None:
        if of(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        REAL_FSYNC(handle)

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_flush_folders_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing_fsync(number))
    write_text(tmp_path / "new" / "file", "content")
    assert (tmp_path / "new" / "file").read_text() == "content"
    with replacing_together(tmp_path / "new", last=["file"]) as fresh:
        write_text(fresh / "file", "other")
    assert (tmp_path / "new" / "file").read_text() == "other"


def test_a_folder_that_cannot_be_read_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: str | Path, flags: int, *rest: int) -> int:
        if Path(path).is_dir():
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    write_text(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("of", [stat.S_ISDIR, stat.S_ISREG])
def test_a_flush_that_fails_is_an_error_of_that_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of: Kind
) -> None:
    monkeypatch.setattr(os, "fsync", failing_fsync(number, of=of))
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file", "content")
    place = tmp_path if of is stat.S_ISDIR else tmp_path / "file"
    assert (caught.value.errno, caught.value.filename) == (number, str(place))
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_an_error_of_the_final_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` raises it: no name

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file", "content")
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError) as caught, replacing(tmp_path / "file") as temporary:
        (temporary / "below").mkdir()
    assert caught.value.filename == str(temporary / "below")  # another file's error stays its own


class Crash(BaseException):
    """The end of a process, here and now."""


OLD, NEW = "the old set", "the new set"
SET = ("a.beton", "a.json", "a.names.txt", "b.beton", "b.json")


def states(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in SET if (folder / name).is_file()}


def test_a_crash_never_leaves_a_set_that_vouches_for_files_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash before each call that changes the folder; what has a manifest is then of one set."""
    seen = set[str]()
    for crash_at in range(len(SET) + 3):
        folder = tmp_path / str(crash_at)
        for name in SET:
            write_text(folder / name, OLD)
        calls = [0]

        def counted(real: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: object, **options: object) -> None:
                if calls[0] == crash_at:  # noqa: B023  # used within the same round
                    raise Crash
                calls[0] += 1  # noqa: B023
                real(*arguments, **options)

            return call

        with monkeypatch.context() as patch, pytest.raises(Crash):
            with replacing_together(folder, last=["a.json", "b.json"]) as fresh:
                for name in SET:
                    write_text(fresh / name, NEW)
                patch.setattr(os, "replace", counted(os.replace))
                patch.setattr(Path, "unlink", counted(Path.unlink))
                patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise Crash
        for manifest, others in (("a.json", ("a.beton", "a.names.txt")), ("b.json", ("b.beton",))):
            if (folder / manifest).is_file():
                text = (folder / manifest).read_text()
                assert {(folder / name).read_text() for name in others} == {text}
                seen.add(text)
            else:
                seen.add("none")
    assert seen == {OLD, NEW, "none"}


def test_a_set_is_replaced_whole_or_left_alone(tmp_path: Path) -> None:
    for name in (*SET, "other"):
        write_text(tmp_path / name, OLD)
    with pytest.raises(KeyError), replacing_together(tmp_path, last=["a.json"]) as fresh:
        write_text(fresh / "a.beton", NEW)
        raise KeyError
    assert states(tmp_path) == {OLD}
    with replacing_together(tmp_path, last=["a.json", "b.json"]) as fresh:
        for name in SET:
            write_text(fresh / name, NEW)
    assert states(tmp_path) == {NEW}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*SET, "other"))
    assert (tmp_path / "other").read_text() == OLD
    with pytest.raises(OSError) as caught, replacing_together(tmp_path, last=[]) as fresh:
        raise OSError(errno.ENOSPC, "full", str(fresh / "a.beton"))
    assert caught.value.filename == str(tmp_path / "a.beton")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_files_move_waits_until_the_set_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """With another thread there, which the kernel may give the signal to."""
    write_text(tmp_path / "a.json", OLD)
    real, done = os.replace, threading.Event()

    def signalled(source: Path, target: Path) -> None:
        real(source, target)
        os.kill(os.getpid(), number)
        time.sleep(0.01)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    threading.Thread(target=done.wait).start()
    try:
        with pytest.raises(KeyboardInterrupt), replacing_together(tmp_path, last=["a.json"]) as new:
            for name in SET:
                write_text(new / name, NEW)
            monkeypatch.setattr(os, "replace", signalled)
    finally:
        done.set()
        signal.signal(number, before)
    assert states(tmp_path) == {NEW} and len(list(tmp_path.iterdir())) == len(SET)


def test_files_that_could_not_move_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.names.txt" / "in the way").mkdir(parents=True)
    told = pytest.raises(OutputError, match=r"Is a directory.*lie in .*\.new")
    with told as caught, replacing_together(tmp_path, last=["a.json"]) as fresh:
        for name in SET:
            write_text(fresh / name, NEW)
    assert str(fresh) in str(caught.value)
    assert (fresh / "a.json").read_text() == NEW and not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("name", ["train.beton", "train.json", "train.sums.npy"])
def test_an_output_that_would_replace_an_input_is_refused(tmp_path: Path, name: str) -> None:
    beton = tmp_path / "train.beton"
    with pytest.raises(OutputError, match=f"belongs to the input {beton}"):
        check_output(tmp_path / "x" / ".." / name, option="--out", inputs=[beton])
    check_output(tmp_path / "training.png", option="--out", inputs=[beton])


@pytest.mark.parametrize("folder", [False, True])
def test_an_output_that_can_be_written_passes_without_a_trace(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "new" / "deep" / "out"
    check_output(out, option="--out", folder=folder)
    assert not list(tmp_path.iterdir())
    write_text(out / "file" if folder else out, "kept")
    before = sorted(tmp_path.rglob("*"))
    check_output(out, option="--out", folder=folder)
    assert sorted(tmp_path.rglob("*")) == before
    if not folder:
        assert out.read_text() == "kept"


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/out.json", "A part of this path is a file|is in the way"),
        ("x" * 300, "File name too long. Choose a shorter name"),
        ("/proc/nothing/out", "No such file or directory"),
        ("/dev/null/x", "A part of this path is a file|is in the way"),
        ("/dev/full", "not a (regular file|folder): choose another name"),
        ("loop/out", "Too many levels of symbolic links|is in the way"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_by_name(
    tmp_path: Path, folder: bool, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=rf"(?s)^--out .*({reason})"):
        check_output(tmp_path / place, option="--out", folder=folder)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    for path in (tmp_path, Path(".")):
        with pytest.raises(OutputError, match="is not a regular file"):
            check_output(path, option="--out")


def test_a_full_or_read_only_disk_is_found_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, remedy in ((errno.ENOSPC, "Free space there"), (errno.EROFS, "Choose a place")):

        def fails(*_: object, code: int = number, **__: object) -> None:
            raise OSError(code, os.strerror(code), str(tmp_path / f".out.{os.getpid()}.tmp"))

        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", fails)
            with pytest.raises(OutputError, match=rf"out cannot be written: {os.strerror(number)}"):
                check_output(tmp_path / "out", option="--out")
            with pytest.raises(OutputError, match=remedy):
                check_output(tmp_path / "out", option="--out")


@pytest.mark.parametrize(
    ("done", "line"),
    [
        (40_000, "reading: 40,000 of 80,000 images, 2,000/s, eta 20s\n"),
        (3, "reading: 3 of 80,000 images, 0.15/s, eta"),
        (0, "reading: 0 of 80,000 images, 0/s, eta 0s\n"),
    ],
)
def test_a_line_tells_count_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, done: int, line: str
) -> None:
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(80_000, label="reading", stream=stream) as progress:
        now[0] = 20.0
        progress.advance(done)
    assert stream.getvalue().startswith(line)
    assert stream.getvalue().splitlines()[-1].endswith(f"in 20s, {line.split(', ')[1]}")
