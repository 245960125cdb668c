"""Whole-file writes, checksums, and the progress line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO


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


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
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


def tell(text: str, stream: TextIO) -> None:
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


class LiveLine:
    """The last line of a terminal, rewritten in place; without a terminal nothing is shown."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.tty = stream, stream.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Put ``text`` in place of the line; cut to the terminal's width, or it could not be."""
        if self.tty:
            text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
            tell(f"\r{text.ljust(self._width)}", self.stream)
            self._width = len(text)

    def clear(self) -> None:
        """Blank the line, so that other text can be printed in its place."""
        if self._width:
            tell(f"\r{' ' * self._width}\r", self.stream)
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
        tell(
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
            tell(f"{text}\n", self._stream)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
