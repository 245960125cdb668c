"""Whole-file writes, checksums, and the progress line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it is flushed to disk and renamed.

    The final name therefore holds either the old file or the whole new one. On an exception the
    temporary file is removed and the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 under ``path`` in one atomic step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON under ``path`` in one atomic step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class UnusualFileError(OSError):
    """A pipe, socket, device or folder under a file's name, or a file beyond a limit."""


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: Path, *, limit: int | None = None) -> BinaryIO:
    """Open a file to read its bytes; `UnusualFileError` unless it is a regular one.

    Opening a pipe waits for its writer for ever, and a device need never end. limit: most bytes.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "a device")
        raise UnusualFileError(f"{kind}, not a regular file")
    if limit is not None and status.st_size > limit:
        raise UnusualFileError(f"{status.st_size:,} bytes, more than {limit:,}")
    return open(path, "rb")


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
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


class LiveLine:
    """The last line of a terminal, rewritten in place; without a terminal nothing is shown."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.tty = stream, stream.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Put ``text`` in place of the line; cut to the terminal's width, or it could not be."""
        if self.tty:
            text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
            self.stream.write(f"\r{text.ljust(self._width)}")
            self.stream.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Blank the line, so that other text can be printed in its place."""
        if self._width:
            self.stream.write(f"\r{' ' * self._width}\r")
            self._width = 0


class Progress:
    """A line with count, rate and remaining time, for anything that may take over two seconds.

    On a terminal the line is rewritten once a second; elsewhere a new line appears every ten.
    """

    def __init__(
        self, total: int, *, label: str, unit: str = "images", stream: TextIO | None = None
    ) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._line = LiveLine(self._stream)
        self._period_s = 1.0 if self._line.tty else 10.0
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        elapsed = time.monotonic() - self._start
        rate = self.done / max(elapsed, 1e-9)
        state = "" if kind is None else " (stopped)"
        self._line.clear()
        self._stream.write(
            f"{self.label}: {self.done:,} of {self.total:,} {self.unit} in "
            f"{format_seconds(elapsed)}, {_per_second(rate)}{state}\n"
        )
        self._stream.flush()

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
            self._stream.write(f"{text}\n")
            self._stream.flush()


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
