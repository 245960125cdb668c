"""Errors of the system end programs as the project's own do: in one line, with a code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harl_fast.errors import explain, run_main

ROOT = Path(__file__).parents[1]


def failing(error: OSError) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/val.beton"),
            "error: /data/val.beton: No space left on device. Free space there, then run the "
            "command again",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "error: Too many open files. Let this process open more files (`ulimit -n 4096`), or "
            "use fewer workers, then run the command again",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", b"/x"),
            "error: /x: No such file or directory. Check that it is there and can be used, then "
            "run the command again",
        ),
        (
            OSError("AF_UNIX path too long"),
            "error: AF_UNIX path too long. Check that it is there and can be used, then run the "
            "command again",
        ),
    ],
)
def test_an_error_of_the_system_is_one_line_with_file_reason_and_remedy(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_main(lambda: failing(error))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_every_common_error_has_a_remedy_of_its_own() -> None:
    common = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "ENOTDIR", "ENAMETOOLONG", "EMFILE", "ENFILE")
    texts = {explain(OSError(getattr(errno, name), "x")) for name in (*common, "ENOMEM", "EIO")}
    assert len(texts) == len(common) + 2


PROGRAM = """
from harl_fast.errors import run_main
def main():
    for number in range({lines}):
        print("line", number)
    return 0
run_main(main)
"""


def shell(command: str, *, lines: int) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(lines=lines)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -c '{program}' {command}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_a_program_in_silence(lines: int) -> None:
    done = shell("| true" if lines == 1 else "| head -n 1", lines=lines)
    assert done.stderr == "" and done.returncode in ((0, 141) if lines == 1 else (141,))


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_into_a_full_disk_is_one_line(lines: int) -> None:
    done = shell("> /dev/full", lines=lines)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "No space left on device. Free space there" in line
    assert lines > 1 or "standard output: " in line
