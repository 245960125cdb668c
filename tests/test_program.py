"""What surrounds every program: errors in one line with a code, and a terminal kept plain."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harl_fast.errors import explain, one_line
from harl_fast.files import LiveLine
from harl_fast.program import LONGEST, PlainStream, run_main
from tests.programs import started

ROOT = Path(__file__).parents[1]
NASTY = "a\x1b[31m\nb\rc\u202ed\udcffe\x9bf\u2028gä"
"""Terminal sequences, line breaks, a turn of direction, half a UTF-8 character, a letter."""


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
    common = (
        "ENOSPC",
        "EDQUOT",
        "EROFS",
        "EACCES",
        "ENOTDIR",
        "ENOTEMPTY",
        "ENAMETOOLONG",
        "EMFILE",
        "ENFILE",
    )
    texts = {explain(OSError(getattr(errno, name), "x")) for name in (*common, "ENOMEM", "EIO")}
    assert len(texts) == len(common) + 2


PROGRAM = """
from harl_fast.program import run_main
def main():
    for number in range({lines}):
        print("line", number)
    return 0
run_main(main)
"""


def shell(command: str, *, lines: int, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(lines=lines)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -c '{program}' {command}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_ends_a_program_in_silence(lines: int) -> None:
    done = shell("| true" if lines == 1 else "| head -n 1", lines=lines)
    assert done.stderr == "" and done.returncode in ((0, 141) if lines == 1 else (141,))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_into_a_full_disk_is_one_line(lines: int, unbuffered: str) -> None:
    done = shell("> /dev/full", lines=lines, unbuffered=unbuffered)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: standard output: No space left on device. Free space there")


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
    imports = "import sys, warnings\nfrom harl_fast.errors import *\n"
    imports += "from harl_fast.program import run_main"
    program = f"{imports}\ndef main():\n    {body}\n"
    return subprocess.run(
        [sys.executable, "-c", f"{program}\nrun_main(main)", os.fsencode(NASTY)],
        capture_output=True,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii"}])
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
def test_a_programs_every_message_is_plain_in_any_encoding(
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
    assert result.stderr == b"error: x.beton\\nall samples are as written: is damaged\n"
    result = ended("raise DataError('a: one', 'b: two')")
    assert result.stderr == b"error: a: one\n  b: two\n"


def test_an_error_of_any_length_is_cut() -> None:
    result = ended("raise DataError('x' * 10**7)")
    assert result.returncode == 2
    assert len(result.stderr) < LONGEST + 100


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_cost_no_work(tmp_path: Path, closed: str) -> None:
    """And no file takes their number: what is printed would be written into it."""
    path = tmp_path / "file"
    body = f"""
from harl_fast.files import LiveLine
from harl_fast.program import run_main
import os, sys
def main():
    with open({str(path)!r}, "w") as stream:
        LiveLine(sys.stderr).show("progress")
        print("text"), print("text", file=sys.stderr)
        os.write(1, b"native"), os.write(2, b"native")
        stream.write("content")
    return 3
run_main(main)
"""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, body], cwd=ROOT, check=False
    )
    assert done.returncode == 3
    assert path.read_text() == "content"


def test_an_interrupt_that_is_swallowed_is_repeated() -> None:
    body = """
import os, signal, time
import harl_fast.program as program
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)
    except BaseException:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # a clean-up, which neither that nor the repetition disturbs
        print("cleaned up", flush=True)
    time.sleep(5)
    return 0
program.run_main(main)
"""
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.startswith("interrupted")
    assert done.stdout == "cleaned up\n"


def test_an_interrupt_during_a_programs_imports_is_one_line() -> None:
    body = "import harl_fast.program, os, signal, time; os.kill(os.getpid(), 2); time.sleep(5)"
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "interrupted: no file is left half-written\n"


@pytest.mark.parametrize("library", ["multiarray", "libtorch"])
@pytest.mark.parametrize("program", ["preprocess.verify", "preprocess.masks.selftrained.train"])
def test_an_interrupt_while_libraries_are_imported_is_one_line(program: str, library: str) -> None:
    options = ["--data", "x", "--out", "x.safetensors"] if program.endswith("train") else ["x"]
    job = started("-m", program, *options)
    while library not in Path(f"/proc/{job.pid}/maps").read_text():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate()
    assert errors == "interrupted: no file is left half-written\n"
    assert job.returncode in (130, -signal.SIGINT)  # which is 130 to a shell


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NUMBA_NUM_THREADS", "0"),
        ("NUMBA_NUM_THREADS", "abc"),
        ("NUMBA_NUM_THREADS", "99999"),
        ("NUMBA_NUM_THREADS", ""),
        ("NUMBA_THREADING_LAYER", "foo"),
        ("TORCH_LOGS", "foo"),
    ],
)
def test_a_variable_that_a_library_does_not_take_is_named(name: str, value: str) -> None:
    job = started("-m", "preprocess.verify", "x.beton", **{name: value})
    _, errors = job.communicate()
    assert job.returncode == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert name in errors and repr(value) in errors and "unset it" in errors


@pytest.mark.parametrize("name", ["MPLBACKEND", "MATPLOTLIBRC"])
def test_only_a_variable_that_an_error_speaks_of_is_blamed(name: str, tmp_path: Path) -> None:
    """By its name, its value or its library: others that are set take no part."""
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: 8\xff\n")
    value = {"MPLBACKEND": "Qt4Agg", "MATPLOTLIBRC": str(tmp_path)}[name]
    innocent = {"OMP_NUM_THREADS": "1", "NUMBA_OPT": "3", "TORCH_HOME": "/x"}
    words = ["-m", "harl_fast.tools.compare", "x", "y", "--out", str(tmp_path / "out")]
    job = started(*words, **innocent, **{name: value})
    _, errors = job.communicate()
    assert job.returncode == 2 and "matplotlib" in errors.splitlines()[-1]
    assert f"{name}={value!r} in the environment: set a value" in errors.splitlines()[-1]
    assert not [each for each in innocent if each in errors]


RAISES = """-c 'import harl_fast.program as program
def main(): raise SystemError("error return without exception set")
program.run_main(main)'"""


@pytest.mark.parametrize("words", ["-m preprocess.verify x.beton", RAISES], ids=["verify", "bare"])
def test_too_few_addresses_for_the_libraries_are_blamed_on_the_limit(words: str) -> None:
    """Machines that many share may allow less than torch's libraries take."""
    job = subprocess.run(
        ["bash", "-c", f"ulimit -v 2000000; exec {sys.executable} {words}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert job.returncode == 2 and job.stderr.count("\n") == 1, job.stderr
    assert "the limit `ulimit -v` is 2.0 GB here: run the command under a higher" in job.stderr


def test_a_mistake_of_our_own_in_an_import_is_not_blamed_on_the_environment(
    tmp_path: Path,
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('ours')")
    for call in ("__import__('broken')", "int('x')"):
        program = f"from harl_fast.program import run_main\nrun_main(lambda: {call})"
        job = started("-c", program, PYTHONPATH=f"{ROOT}:{tmp_path}", NUMBA_OPT="3")
        _, errors = job.communicate()
        assert "Traceback" in errors and "NUMBA_OPT" not in errors


@pytest.mark.parametrize(
    "command",
    [
        "launch/pretrain.py --data=-- --run x",
        "launch/lineval.py --ckpt x --data x --seed=--",
        "launch/demo.py --run=--",
        "-m preprocess.beton --out=--",
        "-m preprocess.verify --report=-- x.beton",
        "-m preprocess.preview x.beton --out x.png --ids=--",
    ],
)
def test_dashes_as_an_options_value_are_refused(command: str, tmp_path: Path) -> None:
    """argparse makes an empty list of them, past the option's type."""
    job = started(*command.split())
    _, errors = job.communicate()
    assert job.returncode == 2 and errors.count("\n") == 1
    assert re.match(r"error: argument '--\w+': '--' is no value", errors)


def test_dashes_end_the_options_as_ever() -> None:
    job = started("-c", PROGRAM.format(lines=1), "--", "--a=--")
    assert job.communicate() == ("line 0\n", "")


def test_a_working_folder_that_is_gone_is_told_before_large_libraries_abort(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = (
        f"cd gone; rmdir ../gone; {sys.executable} {ROOT}/launch/lineval.py --ckpt /x --data /y"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    *_, line = done.stderr.splitlines()  # the shell has its own word before
    assert done.returncode == 2 and "MKL" not in done.stderr
    assert line.startswith("error: the folder that this was started in is gone")


def test_what_a_shell_did_not_fill_in_is_refused() -> None:
    job = started("-c", PROGRAM.format(lines=1), "--data", "")
    out, errors = job.communicate()
    assert job.returncode == 2 and not out
    assert errors.startswith("error: one of the arguments is an empty") and errors.count("\n") == 1


@pytest.mark.parametrize("more", [{}, {"PYTHONUTF8": "1"}])
def test_names_of_files_that_are_not_read_as_utf8_are_refused(more: dict[str, str]) -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", **more}
    job = started("-c", PROGRAM.format(lines=1), **environment)
    out, errors = job.communicate()
    if more:  # what the error says helps
        assert (job.returncode, out, errors) == (0, "line 0\n", "")
        return
    assert job.returncode == 2 and not out and errors.count("\n") == 1
    assert errors.startswith("error: names of files are read as ascii here")
    assert "(by PYTHONUTF8='0', LC_ALL='C' in the environment): set PYTHONUTF8=1" in errors


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_one_line(tmp_path: Path) -> None:
    """As pydantic does while a model is built."""
    script = tmp_path / "early.py"
    script.write_text(
        "import harl_fast.program\nraise ValueError('Error building model: KeyboardInterrupt: ')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "interrupted: no file is left half-written\n"


def test_what_a_program_imports_is_not_collected_again() -> None:
    body = """import gc, sys
from harl_fast.program import head
with head("__main__", lambda _: True):
    import pydantic
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count() > 10_000"""
    subprocess.run([sys.executable, "-c", body], cwd=ROOT, check=True)
