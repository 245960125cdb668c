"""Messages: cut, on one line, and nothing of a name reaches the terminal but what prints."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harl_fast.errors import LONGEST, PlainStream, one_line, shown
from harl_fast.files import LiveLine

ROOT = Path(__file__).parents[1]
NASTY = "a\x1b[31m\nb\rc\u202ed\udcffe\x9bf\u2028gä"
"""Terminal sequences, line breaks, a turn of direction, half a UTF-8 character, a letter."""


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


def test_deep_values_are_shown() -> None:
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    assert len(shown(value)) <= 80


def test_one_line_escapes_what_does_not_print() -> None:
    assert one_line(NASTY) == r"a\x1b[31m\nb\rc\u202ed\udcffe\x9bf\u2028gä"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_only_what_prints_passes_a_stream_of_any_encoding(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    plain = PlainStream(stream)
    print(NASTY, file=plain, flush=True)
    letter = "\\xe4" if encoding == "ascii" else "ä"
    text = raw.getvalue().decode(encoding)
    assert text == f"a\\x1b[31m\nb\\rc\\u202ed\\udcffe\\x9bf\\u2028g{letter}\n"
    assert plain.encoding == encoding


def test_the_progress_line_still_returns_to_its_start() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    line = LiveLine(PlainStream(terminal))
    line.show("reading a\x1bb")
    line.clear()
    assert terminal.getvalue() == f"\rreading a\\x1bb\r{' ' * 11}\r"


def ended(body: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a main of these lines as a program does, with one nasty argument."""
    program = f"import sys, warnings\nfrom harl_fast.errors import *\ndef main():\n    {body}\n"
    return subprocess.run(
        [sys.executable, "-c", f"{program}\nrun_main(main)", os.fsencode(NASTY)],
        capture_output=True,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [{}, C_LOCALE, {"PYTHONIOENCODING": "ascii"}])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise ConfigError(f'{sys.argv[1]} is wrong')", 2),
        ("print(sys.argv[1]); return 0", 0),
        ("print(sys.argv[1], file=sys.stderr); return 0", 0),
        ("warnings.warn(sys.argv[1]); return 0", 0),
        ("import argparse; argparse.ArgumentParser().parse_args(['--' + sys.argv[1]])", 2),
    ],
)
def test_a_programs_every_message_is_plain_in_any_locale(
    body: str, code: int, environment: dict[str, str]
) -> None:
    result = ended(body, **environment)
    assert result.returncode == code
    printed = result.stdout + result.stderr
    assert b"Traceback" not in printed
    assert not set(printed) & ({*range(32), 127} - {ord("\n"), ord("\t")})
    assert b"\\x1b[31m" in printed
    assert "\u202e".encode() not in printed


def test_no_part_of_an_error_passes_for_a_message_of_its_own() -> None:
    result = ended("raise DataError('x.beton\\nall samples are as written: is damaged')")
    assert result.stderr == b"error: x.beton\n  all samples are as written: is damaged\n"


def test_an_error_of_any_length_is_cut() -> None:
    result = ended("raise DataError('x' * 10**7)")
    assert result.returncode == 2
    assert len(result.stderr) < LONGEST + 100
