"""What goes wrong around a conversion's output is found early, told once, and blamed rightly."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harl_fast.data.container.index import check_container
from harl_fast.data.container.manifest import read_manifest
from harl_fast.errors import DataError, OutputError
from harl_fast.files import LONGEST_TMPDIR
from harl_fast.plan import __main__ as plan
from harl_fast.pool import ordered_map
from harl_fast.runfiles import RESULT_FILES
from harl_fast.tools import evidence_scores
from launch import evidence
from preprocess import balanced, beton, preview, verify
from preprocess.masks import __main__ as masks
from preprocess.masks.selftrained import train as masks_train
from tests.preprocess.support import image_folder, out_of_space

ROOT = Path(__file__).parents[2]


class Crash(BaseException):
    """The end of a process, here and now."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


def convert(data: Path, out: Path, *options: str) -> int:
    return beton.main(["--data", str(data), "--out", str(out), "--workers", "1", *options])


def fails_at(real: Callable[..., Any], count: int, error: BaseException) -> Callable[..., Any]:
    """Return a function that raises instead of its call number ``count``, from 0."""
    calls = [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == count + 1:
            raise error
        return real(*arguments, **options)

    return call


def test_a_file_system_that_cannot_flush_folders_takes_a_conversion(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert convert(data, tmp_path) == 0
    check_container(tmp_path / "val.beton", read_manifest(tmp_path / "val.beton"))


def test_a_full_disk_is_an_error_of_the_container(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "truncate", full)
    with pytest.raises(OSError) as caught:
        convert(data, tmp_path)
    assert caught.value.filename == str(tmp_path / "train.beton")
    assert not list(tmp_path.iterdir())


def test_an_error_after_the_containers_are_there_fails_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def advise(*_: object) -> list[str]:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp")

    monkeypatch.setattr(beton, "advise", advise)
    assert convert(data, tmp_path) == 0
    assert "note: no advice on stores: [Errno 28] No space left on device: '/tmp'" in (
        capsys.readouterr().out
    )


def started(code: str, *, tmpdir: Path | None = None, files: int = 0) -> tuple[int, str]:
    """Run Python code in a process of its own; return its exit code and what it prints as errors.

    files: how many it may open.
    """
    limit = f"ulimit -n {files}; " if files else ""
    places = {"TMPDIR": str(tmpdir)} if tmpdir else {}
    done = subprocess.run(
        ["bash", "-c", f'{limit}exec "$@"', "bash", sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **places},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


WORKERS = """
import operator
from harl_fast.program import run_main
from harl_fast import pool
results = pool.ordered_map(operator.neg, range(90), workers={workers}, describe=str)
run_main(lambda: len(list(results)) - 90)
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("train.json", b'{"images": [], "annotations": []}', "is no manifest"),
        ("val.json", b"[]", "is no manifest"),
        ("train.beton", b"of plain ffcv", "has no manifest beside it"),
        ("train.names.txt", b"mine", "has no manifest beside it"),
        ("val.report.json", b"{}", "has no manifest beside it"),
        ("val.sums.npy", b"mine", "has no manifest beside it"),
        ("train.prints.npy", b"mine", "has no manifest beside it"),
    ],
)
def test_files_that_are_not_ours_are_not_replaced(
    data: Path, tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    """COCO's annotations have the name of a manifest, FFCV's own containers that of ours."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} would be replaced, and {why} .*: move it away"):
        convert(data, tmp_path)
    assert (tmp_path / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_file_beside_a_set_is_replaced_with_it(data: Path, tmp_path: Path) -> None:
    convert(data, tmp_path, "--shard-size", "5")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "train.names.txt").write_text("mine")
    for options in ([], ["--shard-size", "5"], ["--shard-size", "4"]):
        with pytest.raises(
            DataError, match=r"train\.names\.txt would be .*, and belongs to no con"
        ):
            convert(data, tmp_path, *options)
    (tmp_path / "train.names.txt").unlink()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert convert(data, tmp_path) == 0 and not (tmp_path / "train").exists()


def test_nothing_of_others_is_deleted_where_archives_are_unpacked(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / ".unpacked").mkdir()
    (tmp_path / ".unpacked" / "work.txt").touch()
    with pytest.raises(DataError, match=r"\.unpacked/work\.txt lies where archives are unpacked"):
        convert(data, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [".unpacked", "work.txt"]


def test_a_long_name_of_the_temporary_folder_is_blamed_on_that_folder() -> None:
    longest = Path("/tmp") / ("x" * (LONGEST_TMPDIR - len("/tmp/")))
    for place, works in ((longest, True), (Path(f"{longest}x"), False)):
        place.mkdir()
        try:
            status, errors = started(WORKERS.format(workers=1), tmpdir=place)
        finally:
            shutil.rmtree(place)
        if works:
            assert (status, errors) == (0, "")
        else:
            assert status == 2 and re.fullmatch(
                rf"error: worker process 1 could not be started: .*{place}, has a longer name than "
                rf"sockets may have: set TMPDIR to one of at most {LONGEST_TMPDIR} letters.*\n",
                errors,
            )


@pytest.mark.timeout(120)
def test_too_few_open_files_are_blamed_on_the_limit() -> None:
    assert started(WORKERS.format(workers=13), files=64) == (0, "")
    status, errors = started(WORKERS.format(workers=14), files=64)
    assert status == 2 and errors == (
        "error: 14 workers need 66 open files, this process may open 64: allow more (`ulimit -n "
        "4096`), or use fewer workers, then run the command again\n"
    )


def test_a_worker_that_does_not_start_is_told_with_the_systems_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.ForkServerProcess._Popen", staticmethod(refuse))
    with pytest.raises(DataError, match=r"worker process 1 could not be .* unavailable.*ulimit -u"):
        list(ordered_map(abs, [1], workers=1, describe=str))


@pytest.mark.timeout(60)
def test_an_error_of_the_system_in_a_worker_is_one_line() -> None:
    with pytest.raises(DataError, match=r"failed on file 3\. /out/3: No space left.*Free space"):
        list(ordered_map(out_of_space, range(3, 9), workers=1, describe=lambda n: f"file {n}"))


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("the work began before the output was checked")


@pytest.mark.parametrize("place", ["file/out", "x" * 300, "/proc/none/out"])
def test_programs_try_their_outputs_before_any_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    out, here = str(tmp_path / place), str(tmp_path / "data")
    for name in ("beton.read_source", "beton.make_demo_set", "beton.torchvision_source"):
        monkeypatch.setattr(f"preprocess.{name}", no_work)
    for name in ("masks.__main__.read_source", "masks.__main__.try_method"):
        monkeypatch.setattr(f"preprocess.{name}", no_work)
    for name in (
        "masks.selftrained.train.make_network",
        "preview.contact_sheet",
        "preview.draw_masks",
    ):
        monkeypatch.setattr(f"preprocess.{name}", no_work)
    monkeypatch.setattr(verify, "verify", no_work)
    png = ["--out", f"{out}.png"]
    for program, arguments in (
        (beton, ["--out", out]),
        (beton, ["--out", out, "--data", here]),
        (beton, ["--out", out, "--dataset", "cifar10"]),
        (masks, ["--out", out, "--data", here]),
        (masks_train, ["--out", f"{out}.safetensors", "--data", here]),
        (preview, [f"{here}/train.beton", *png]),
        (preview, [here, "--masks", *png]),
        (verify, [f"{here}/train.beton", "--report", out]),
    ):
        with pytest.raises(OutputError, match=r"^--(out|report) .*cannot be written: "):
            program.main(arguments)  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_no_program_writes_into_the_folder_of_a_result(tmp_path: Path) -> None:
    for name in RESULT_FILES[:3]:
        (tmp_path / name).touch()
    here = str(tmp_path)
    for program, arguments in (
        (plan, ["--picture", f"{here}/x.png"]),
        (evidence, ["--quick", "--page", f"{here}/x.md", "--out", f"{here}/out"]),
        (evidence_scores, ["photos", "--ckpt", here, "--data", here, "--out", f"{here}/x.json"]),
        (balanced, [here, "--count", "2", "--out", f"{here}/x.csv"]),
        (verify, [f"{here}/train.beton", "--report", f"{here}/x.json"]),
        (preview, [f"{here}/train.beton", "--out", f"{here}/x.png"]),
    ):
        with pytest.raises(OutputError, match=r"^--\w+ .*/x\.\w+ lies in the folder of a result"):
            program.main(arguments)  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(RESULT_FILES[:3])


def test_statistics_that_cannot_be_written_are_refused_before_the_sheet_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "contact_sheet", no_work)
    (tmp_path / "sheet_stats.png").mkdir()
    with pytest.raises(OutputError, match=r"sheet_stats\.png is not a regular file"):
        preview.main(["x.beton", "--out", str(tmp_path / "sheet.png"), "--stats"])


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_is_no_picture(out: str) -> None:
    with pytest.raises(OutputError, match=f"--out {out} is not a regular file"):
        preview.main(["x.beton", "--out", out])
