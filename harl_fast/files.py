"""Whole-file writes, checks of outputs, checksums, and the progress line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from harl_fast.errors import ConfigError, OutputError, explain, one_line, shown

_CANNOT_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
    | {errno.EACCES, errno.EISDIR}
)
"""What file systems answer that cannot flush a folder: CIFS and some of FUSE's the first four,
those that want it open for writing EBADF; the last two come from opening it, where it may be
written but not read. PostgreSQL passes over the same (fsync_fname_ext in storage/file/fd.c).
Nothing failed then: the system flushes when it likes. EIO and ENOSPC are failures."""

LONGEST_TMPDIR = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
"""Bytes of the folder for temporary files: Linux has 108 for a socket's whole name with its final
zero (unix(7)), and `multiprocessing` gives its own such names there."""

BROKEN_ARRAYS = (
    OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError,
    MemoryError,  # for a shape that is stated, not there
)  # fmt: skip
"""What `numpy.load` raises of damaged files, .npy and .npz."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL such as ``s3://bucket/set``, not the name of a file."""
    return re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


def local_path(text: str | Path) -> Path:
    """Return the path that a text names; ConfigError for a URL, of which a path drops a slash.

    A leading ``~`` is the user's folder: not every shell replaces it behind ``DATA=``.
    """
    if is_url(str(text)):
        raise ConfigError(
            f"{shown(str(text))} is a URL, and this program takes files of this machine: copy "
            f"them, or mount that store as a folder"
        )
    return Path(os.path.expanduser(text))


def check_output(
    path: Path,
    *,
    option: str,
    folder: bool = False,
    inputs: Collection[Path] = (),
    of_container: bool = False,
    suffix: str = "",
) -> None:
    """Raise `OutputError` unless a file can be written as ``path``, or into it if ``folder``.

    For programs to call before their work. Makes the folders that are missing and a file under the
    temporary name that `replacing` will use, and removes all of them again: work that is refused
    for another reason leaves no trace. option: where the user gave the path. inputs: files that it
    must not replace, nor those beside them that are named after them. of_container: the file is to
    be a container's; others must not take the name of one, whether it is an input or not. suffix:
    of the one kind of file that is written, such as ``.png``.
    """
    for each in (*inputs, *(() if of_container or folder else _containers_beside(path))):
        beside = os.path.dirname(os.path.realpath(path)) == os.path.dirname(os.path.realpath(each))
        if beside and (path.name == each.name or path.name.startswith(f"{each.stem}.")):
            raise OutputError(f"{option} {path} belongs to {each}: choose another name")
    trial, made = None, list[Path]()
    try:
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            what = "not a folder" if folder else "not a regular file"
            raise OutputError(f"{option} {path} is {what}: choose another name")
        if not path.name.lower().endswith(suffix):
            raise OutputError(f"{option} {path} would hold a {suffix}: end its name in {suffix}")
        trial = _temporary(path / "trial" if folder else path)
        made = [each for each in (trial.parent, *trial.parent.parents) if not each.exists()]
        trial.parent.mkdir(parents=True, exist_ok=True)
        with open(trial, "wb", buffering=0) as stream:
            try:
                stream.write(b"\0")  # a full disk may take a name, but not the first byte
            finally:
                trial.unlink()
    except OSError as error:
        if error.filename == str(trial):
            error.filename = None  # says nothing to a user
        raise OutputError(f"{option} {path} cannot be written: {explain(error)}") from error
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # not made after all, or in use already
                each.rmdir()


def _containers_beside(path: Path) -> list[Path]:
    """Return the containers, and the folders of such, in the folder of a path."""
    here = Path(os.path.realpath(path)).parent
    return [*here.glob("*.beton"), *{beton.parent for beton in here.glob("*/*-of-*.beton")}]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it is flushed to disk and renamed.

    The final name therefore holds either the old file or the whole new one. On an exception the
    temporary file is removed and the old file stays. An `OSError` of the temporary file names
    ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def short_temporary(path: Path) -> Path:
    """Return a temporary name beside ``path``, however long its own is.

    It is the same each time: what a killed process left there is written over.
    """
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals that end a program wait; in other threads than the main one none arrives.

    A signal mask would hold for this thread alone, and the kernel give the signal to another.
    """
    got: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    numbers = every if here else ()
    before = {number: signal.getsignal(number) for number in numbers}
    held = {number: old for number, old in before.items() if old not in (None, signal.SIG_IGN)}
    for number in held:
        signal.signal(number, lambda number, _: got.append(number))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    if got:
        signal.raise_signal(got[0])


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give ``path`` to an `OSError` from inside that names no file, as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync(path: Path) -> None:
    """Flush a file or folder to disk, where its file system can."""
    try:
        with naming(path):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` under ``path`` in one atomic step."""
    with replacing(path) as temporary, naming(path):
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 under ``path`` in one atomic step."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON under ``path`` in one atomic step."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Of file names that are no UTF-8, JSON's own escapes remain, which read back as the same names.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


class UnusualFileError(OSError):
    """A pipe, socket, device, folder or Git LFS pointer under a file's name, or one beyond a limit.

    Of an image inside another file also what does not read as that file states.
    """


_POINTER, _POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024
"""How a pointer of Git LFS begins, and below what size it is by its specification."""
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))


def pointer_reason(data: bytes) -> str:
    """Return what to say of a file's bytes if they are a pointer of Git LFS, or ""."""
    if len(data) >= _POINTER_BYTES or not data.startswith(_POINTER):
        return ""
    return (
        "a pointer of Git LFS, not the file that it stands for: fetch that by `git lfs pull` where "
        "it was cloned"
    )


def open_regular(path: Path, *, limit: int | None = None) -> io.BufferedReader:
    """Open a file to read its bytes; `UnusualFileError` unless it is a regular one that is here.

    Opening a pipe waits for its writer for ever, and a device need never end. limit: most bytes.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "a device")
        raise UnusualFileError(f"{kind}, not a regular file")
    if limit is not None and status.st_size > limit:
        raise UnusualFileError(f"{status.st_size:,} bytes, more than {limit:,}")
    stream = open(path, "rb")  # noqa: SIM115  # the caller closes it
    if status.st_size < _POINTER_BYTES and (reason := pointer_reason(stream.peek())):
        stream.close()
        raise UnusualFileError(reason)
    return stream


def without_waiting(path: str, flags: int) -> int:
    """Open a file at once, for `open`: a pipe would wait for its other end."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file; `UnusualFileError` unless it is a regular one."""
    with open_regular(path) as stream:
        return stream.read()


def sha256_file(path: Path, *, progress: Progress | None = None) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes. progress: counts the MiB that are read."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 18))  # stays in a core's cache
    with open_regular(path) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
            if progress:
                progress.advance((stream.tell() >> 20) - progress.done)
    return digest.hexdigest()


def format_seconds(seconds: float) -> str:
    """Return a duration as ``12s``, ``3m05s`` or ``6h12m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def try_write(text: str, stream: TextIO) -> None:
    """Write ``text`` to a terminal or log at once, or leave it out if that is not possible.

    The work that it tells of goes on when its terminal is closed, the reader of its pipe has ended
    or the disk of its log is full.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno in (errno.EIO, errno.EPIPE):
            # For good. Libraries that write there, and the interpreter at its end, would fail too.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def to_stderr(text: str) -> None:
    """Print a text on standard error as one line, as `try_write` does."""
    try_write(f"{one_line(text)}\n", sys.stderr)


class LiveLine:
    """The last line of a terminal, rewritten in place; without a terminal nothing is shown."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.tty = stream, stream.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Put ``text`` in place of the line; cut to the terminal's width, or it could not be."""
        if self.tty:
            text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
            try_write(f"\r{text.ljust(self._width)}", self.stream)
            self._width = len(text)

    def clear(self) -> None:
        """Blank the line, so that other text can be printed in its place."""
        if self._width:
            try_write(f"\r{' ' * self._width}\r", self.stream)
            self._width = 0


class Progress:
    """A line with count, rate and remaining time, for anything that may take over two seconds.

    On a terminal the line is rewritten once a second; elsewhere a new line appears every ten.
    tqdm would write carriage returns there, and end the work where its reader has left.
    """

    def __init__(
        self,
        total: int,
        *,
        label: str,
        unit: str = "images",
        stream: TextIO | None = None,
        least_s: float = 0.0,
    ) -> None:
        """Start the clock. least_s: what took less time leaves no line."""
        self.total, self.label, self.unit = total, one_line(label), unit
        self.least_s = least_s
        self.done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._line = LiveLine(self._stream)
        self._period_s = 1.0 if self._line.tty else 10.0
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        elapsed = time.monotonic() - self._start
        rate = self.done / max(elapsed, 1e-9)
        state = "" if kind is None else " (stopped)"
        self._line.clear()
        if elapsed < self.least_s:
            return
        try_write(
            f"{self.label}: {self.done:,} of {self.total:,} {self.unit} in "
            f"{format_seconds(elapsed)}, {_per_second(rate)}{state}\n",
            self._stream,
        )

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more units and show the line when it is due."""
        self.done += count
        now = time.monotonic()
        if now - self._shown < self._period_s:
            return
        self._shown = now
        rate = self.done / (now - self._start)
        left_s = (self.total - self.done) / rate if rate > 0 else 0.0
        text = (
            f"{self.label}: {self.done:,} of {self.total:,} {self.unit}, "
            f"{_per_second(rate)}, eta {format_seconds(left_s)}"
        )
        if self._line.tty:
            self._line.show(text)
        else:
            try_write(f"{text}\n", self._stream)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
