"""The doctor reports whatever is broken, and itself needs nothing that may be."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from harl_fast import doctor, host
from harl_fast.doctor import GB, Row
from harl_fast.errors import HarlError

ROOT = Path(__file__).parents[1]
Usage = namedtuple("Usage", "total used free")


def test_the_module_imports_nothing_that_may_be_missing() -> None:
    code = (
        "import sys; before = set(sys.modules); import harl_fast.doctor; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'harl_fast'}))"
    )
    # -S: no site-packages at all, as with an interpreter outside the environment.
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import surely_not_installed", "ModuleNotFoundError: No module named 'surely_not"),
        ("import os; os.abort()", "signal 6"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit('stopped')", "stopped"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
    ],
)
def test_a_broken_library_becomes_one_line(code: str, part: str) -> None:
    answer = doctor.probe(code, timeout_s=1.0 if "sleep" in code else 60.0)
    assert isinstance(answer, str)
    assert part in answer
    assert "\n" not in answer


def test_a_working_library_answers() -> None:
    assert doctor.probe("print('noise'); found['a'] = 1") == {"a": 1}


def broken(found: dict[str, object] | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe", lambda *args, **kwargs: found)


def test_missing_torch_is_a_failure_and_the_processor_is_still_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken("ModuleNotFoundError: No module named 'torch'", monkeypatch)
    rows = doctor.torch_and_devices()
    assert (rows[0].name, rows[0].state) == ("torch", "fail")
    assert rows[1].name == "CPU"
    assert "make setup" in rows[0].remedy


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file", "libgl1"),
        ("ImportError: libturbojpeg.so.0: cannot open shared object file", "libturbojpeg0"),
        ("ModuleNotFoundError: No module named 'distutils'", "setuptools"),
        ("ModuleNotFoundError: No module named 'ffcv'", "make setup"),
    ],
)
def test_known_import_failures_name_their_remedy(
    message: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(message, monkeypatch)
    row = doctor.imported("ffcv", "ffcv")
    assert (row.state, row.value) == ("fail", message)
    assert remedy in row.remedy


def test_a_card_that_torch_does_not_see_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    broken({"version": "2.9", "cuda": "13.0", "devices": []}, monkeypatch)
    monkeypatch.setattr(doctor, "first_line", lambda *command: "A100, 470.1")
    row = doctor.torch_and_devices()[1]
    assert row.state == "warn"
    assert "update the driver" in row.remedy


def test_fewer_numba_threads_than_cores_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    broken({"threads": 0}, monkeypatch)
    assert doctor.numba_threads().state == "warn"
    broken({"threads": 1 << 20}, monkeypatch)
    assert doctor.numba_threads().state == "ok"


def test_missing_headers_fail_only_while_ffcv_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "first_line", lambda *command: "")
    for built, state in ((True, "warn"), (False, "fail")):
        row = doctor.headers("OpenCV headers", "opencv4", "libopencv-dev", built=built)
        assert row.state == state
        assert "libopencv-dev" in row.remedy


def test_a_missing_compiler_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert doctor.compiler().state == "fail"


@pytest.mark.parametrize(
    ("free", "files", "state"),
    [(8 * GB, 0, "ok"), (8 * GB, 2, "warn"), (GB // 2, 0, "warn"), (64 << 20, 0, "warn")],
)
def test_shared_memory_counts_what_is_free_and_what_was_left(
    free: int, files: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(16 * GB, 0, free))
    for number in range(files):
        (tmp_path / f"deepspeed_allreduce_buffer_{number}").write_bytes(b"x" * (1 << 20))
    row = doctor.shared_memory(tmp_path)
    assert row.state == state
    assert ("2 files of DeepSpeed, 2 MB" in row.value) == (files > 0)


@pytest.mark.parametrize(("free", "state"), [(10 << 20, "ok"), (4 << 20, "warn")])
def test_memory_is_compared_with_the_containers(
    free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.beton").write_bytes(bytes(3 << 20))
    (tmp_path / "val.beton").write_bytes(bytes(1 << 20))
    (tmp_path / "train.json").write_bytes(bytes(9 << 20))  # not read while training
    monkeypatch.setattr(doctor, "available_bytes", lambda: free)
    row = doctor.memory(tmp_path)
    assert row.state == state
    assert "4 MB" in row.value


def test_a_folder_without_containers_says_how_to_make_them(tmp_path: Path) -> None:
    row = doctor.memory(tmp_path)
    assert row.state == "fail"
    assert "make beton" in row.remedy


def test_a_container_limit_bounds_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    monkeypatch.setattr(host, "_MEMINFO", tmp_path / "meminfo")
    assert host.available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert host.available_bytes() == 4 * GB
    (tmp_path / "memory.max").write_text(f"{3 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{1 * GB}\n")
    (tmp_path / "memory.stat").write_text("anon 5\n")
    assert host.available_bytes() == 2 * GB


def test_the_exit_code_is_1_if_anything_failed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("good", "ok", "fine", "unused"), Row("poor", "warn", "low", "raise it")]
    assert doctor.main([], checks=lambda data: rows) == 0
    assert doctor.main([], checks=lambda data: [*rows, Row("bad", "fail", "gone", "get it")]) == 1
    printed = capsys.readouterr().out
    assert "unused" not in printed
    assert "-> raise it" in printed
    assert "1 ok, 1 warnings, 1 failures" in printed


def test_a_data_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HarlError, match="not a folder"):
        doctor.main(["--data", str(tmp_path / "none")])


def test_this_environment_passes(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main([])
    printed = capsys.readouterr().out
    assert code == 0, printed
    for name in ("ffcv", "torch", "deepspeed", "numba threads", "OpenCV headers", "file limits"):
        assert f"ok    {name} " in printed or f"warn  {name} " in printed


def test_a_place_that_cannot_be_written_to_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    row = doctor.disk(tmp_path / "file" / "data")
    assert row.state == "fail" and "cannot be written: " in row.value and "OUT=" in row.remedy
    assert doctor.disk(tmp_path).state != "fail" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("longer", "state"), [(0, "ok"), (1, "fail")])
def test_a_temporary_folder_too_long_for_sockets_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longer: int, state: str
) -> None:
    short = Path(f"/tmp/{'x' * (doctor.LONGEST_TMPDIR - len('/tmp/') + longer)}")
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(short))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(16 * GB, 0, 9 * GB))
    row = doctor.temporary_files()
    assert row.state == state and (state == "ok" or "TMPDIR=" in row.remedy)
