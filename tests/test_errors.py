"""How values stand in messages: cut, on one line, as they would be typed."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harl_fast.errors import DataError, explain, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", "'abc'"),
        ("a\x1b\n", r"'a\x1b\n'"),
        (1.5, "1.5"),
        ([1, 2], "[1, 2]"),
        (10**5000, "a huge number"),
    ],
    ids=["text", "escape", "float", "list", "huge"],
)
def test_values_are_shown_as_they_would_be_typed(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, ["x" * 50] * 10**5, {"k" * 10**6: 1}, b"x" * 10**6, [[["x" * 99] * 99] * 99]],
    ids=["text", "list", "dict", "bytes", "nested"],
)
def test_large_values_are_cut_at_once(value: object) -> None:
    start = time.monotonic()
    assert len(shown(value)) <= 80
    assert time.monotonic() - start < 1.0  # microseconds alone


def test_no_name_breaks_the_line_of_an_error() -> None:
    assert str(DataError("a\nb\x1b is missing")) == r"a\nb\x1b is missing"
    assert str(DataError("a: x", "b\nc: y")) == "a: x\n  b\\nc: y"
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "a\nb")
    assert explain(missing).startswith(r"a\nb: No such file")


def test_deep_values_are_shown() -> None:
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    assert len(shown(value)) <= 80


@pytest.mark.parametrize(
    ("inodes", "remedy"), [((9, 0), "It takes no more files"), ((9, 3), "Free"), ((0, 0), "Free")]
)
def test_a_disk_without_inodes_is_told_from_a_full_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inodes: tuple[int, int], remedy: str
) -> None:
    """Some file systems count no inodes and state 0 of 0."""
    facts = dict(zip(("f_files", "f_favail"), inodes, strict=True))
    asked = list[str]()
    monkeypatch.setattr("os.statvfs", lambda path: asked.append(path) or SimpleNamespace(**facts))
    told = explain(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a" / "x")))
    assert f"No space left on device. {remedy}" in told and asked == [str(tmp_path / "a")]
    assert "Free space" in explain(OSError(errno.ENOSPC, "No space left on device"))


def test_a_limit_on_the_size_of_files_is_named_with_what_to_do() -> None:
    told = explain(OSError(errno.EFBIG, os.strerror(errno.EFBIG), "x.beton"))
    assert told.startswith("x.beton: File too large. Raise the limit (`ulimit -f`), or ")
