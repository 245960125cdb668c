"""Whole files, checked outputs, and the progress line."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harl_fast import files
from harl_fast.errors import OutputError
from harl_fast.files import (
    Progress,
    UnusualFileError,
    check_output,
    open_regular,
    replacing,
    write_text,
)

REAL_FSYNC = os.fsync
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


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
    write_text(tmp_path / "new" / "file", "other")
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


@pytest.mark.parametrize("name", ["train.beton", "train.json", "train.sums.npy"])
def test_an_output_that_would_replace_an_input_is_refused(tmp_path: Path, name: str) -> None:
    beton = tmp_path / "train.beton"
    with pytest.raises(OutputError, match=f"belongs to {beton}"):
        check_output(tmp_path / "x" / ".." / name, option="--out", inputs=[beton])
    check_output(tmp_path / "training.png", option="--out", inputs=[beton])


def test_an_output_may_be_named_after_the_folder_of_a_data_set(tmp_path: Path) -> None:
    """Only the folder of a container set has files beside it that are named after it."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train.beton").touch()
    check_output(tmp_path / "photos.png", option="--out")
    (tmp_path / "photos" / "00000-of-00001.beton").touch()
    with pytest.raises(OutputError, match=r"photos\.json belongs to"):
        check_output(tmp_path / "photos.json", option="--out")


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


def test_a_pointer_of_git_lfs_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(POINTER)
    with pytest.raises(UnusualFileError, match=r"a pointer of Git LFS, .*git lfs pull"):
        open_regular(path)
    for sound in (b"", POINTER[:30], POINTER + bytes(2000), b"\xff\xd8" + POINTER):
        path.write_bytes(sound)
        with open_regular(path) as stream:
            assert stream.read() == sound


@pytest.mark.parametrize("name", ["x.tif", "x", "png", "x.png.jpg"])
def test_a_picture_under_the_name_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"{name} would hold a .png: end its name in .png"):
        check_output(tmp_path / name, option="--out", suffix=".png")
    check_output(tmp_path / "X.PNG", option="--out", suffix=".png")
