"""The GPU check: what runs its sections, and the sections in their reduced form for CPUs."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_sections import SECTIONS, CheckSettings, Findings, Section, read_findings
from benchmarks.report import Row
from harl_fast.errors import ConfigError
from harl_fast.steps import ROOT
from tests.betons import plain_item, write_beton

STUB = "tests.bench.gpu_stub"


@pytest.fixture(autouse=True)
def _no_orphans() -> Iterator[None]:
    """Let orphans go to the system again, which the check's program keeps to itself."""
    yield
    ctypes.CDLL(None).prctl(36, 0)  # PR_SET_CHILD_SUBREAPER


def stubs(monkeypatch: pytest.MonkeyPatch, **ways: dict[str, Any]) -> None:
    """Put sections of the stub in place of the check's."""
    made = [Section(name, f"{STUB}:{name}", **{"limit_s": 30, **way}) for name, way in ways.items()]
    monkeypatch.setattr(gpu_check, "SECTIONS", tuple(made))
    monkeypatch.setattr(gpu_check, "LEAST_S", 1.0)


def check(out: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the check on the CPU; return its exit code and the sections' lines."""
    code = gpu_check.main(["--device", "cpu", "--out", str(out), *words])
    lines = (out / "sections.jsonl").read_text().splitlines()
    return code, [json.loads(line) for line in lines]


def test_later_sections_run_whatever_became_of_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stubs(
        monkeypatch,
        crash={},
        hang={"limit_s": 3.0 / gpu_check.SLOWER},
        missed={},
        good={},
        leave_behind={"gpus": 2},
    )
    code, lines = check(tmp_path)
    assert code == 1
    assert [line["state"] for line in lines] == ["failed", "late", "done", "done", "skipped"]
    assert "ValueError: the reason" in lines[0]["reason"]
    assert "said on standard output" in (tmp_path / "section-0.log").read_text()
    assert [line["rows"][0]["what"] for line in lines[:2]] == ["before it"] * 2
    assert 3.0 <= lines[1]["seconds"] < 10.0
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))
    assert lines[2]["rows"][0]["verdict"] == "MISSED"
    assert [row["verdict"] for row in lines[3]["rows"]] == ["", "floor"]
    assert lines[4]["reason"] == "needs 2 GPUs or more, and there are 0"
    told = capfd.readouterr()
    assert "1 of 2 bars met; FAILED" in told.out and "s at most in" in told.err
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    assert written["machine"]["version"] == "1.2" and len(written["bars"]) == 5


@pytest.mark.parametrize(("fatal", "expected"), [(True, 1), (False, 0)])
def test_a_section_that_does_not_count_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: bool, expected: int
) -> None:
    stubs(monkeypatch, good={}, missed={"fatal": fatal}, leave_behind={})
    assert check(tmp_path)[0] == expected
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))


def test_all_sections_together_keep_to_the_time_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs(monkeypatch, hang={}, good={})
    monkeypatch.setattr(gpu_check, "TOTAL_S", 2.0 / gpu_check.SLOWER)
    code, lines = check(tmp_path)
    assert code == 1 and [line["state"] for line in lines] == ["late", "late"]
    assert "took all the time that there is" in lines[1]["reason"]


def test_eight_minutes_are_enough_for_one_gpu() -> None:
    assert sum(section.limit_s for section in SECTIONS if section.gpus <= 1) <= gpu_check.TOTAL_S


def test_the_documentation_has_the_sections_and_their_limits() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d) ([\w ]+) \| (\d+) \|", page, flags=re.MULTILINE)
    expected = [(str(n), each.name, f"{each.limit_s:g}") for n, each in enumerate(SECTIONS)]
    assert table == expected


def test_only_chosen_sections_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs(monkeypatch, crash={}, good={})
    with pytest.raises(ConfigError, match="which section 0 draws"):
        check(tmp_path, "--only", "1")
    (tmp_path / "train.json").touch()
    code, lines = check(tmp_path, "--only", "1", "--data", str(tmp_path))
    assert code == 0 and [line["section"] for line in lines] == [1]
    with pytest.raises(SystemExit):
        check(tmp_path, "--only", "1,7")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no CUDA device here .* --device cpu"):
        gpu_check.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    stream = io.StringIO()
    found = Findings(3, stream, timed=True)
    found.at_most("step", 1.5, 1.03, "x", timing=True)
    found.fact("gpu", "none")
    path = tmp_path / "lines"
    path.write_text(stream.getvalue() + stream.getvalue()[:30])
    rows, facts = read_findings(path)
    assert rows == [Row("3", "step", 1.5, "x", 1.03, less_is_better=True)]
    assert rows[0].verdict == "MISSED" and facts == {"gpu": "none"}


@pytest.mark.parametrize(
    ("lines", "verdicts"),
    [
        (["GPU-a, 17, 5000", "GPU-b, 18, 5000"], ["floor", "floor"]),
        (["GPU-a, 17, 5000", "GPU-a, 18, 520", "GPU-b, 18, 5000"], ["MISSED", "floor"]),
        (["GPU-a, 17, 5000"], ["floor", "MISSED"]),
        ([], []),
        (None, []),
    ],
)
def test_each_gpu_is_to_hold_its_own_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str] | None, verdicts: list[str]
) -> None:
    from benchmarks.gpu_runs import contexts

    monkeypatch.setenv("PATH", str(tmp_path))
    if lines is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        tool.chmod(0o755)
    stream, path = io.StringIO(), tmp_path / "lines"
    contexts(Findings(7, stream, timed=True), ranks=2)
    path.write_text(stream.getvalue())
    rows, facts = read_findings(path)
    assert [row.verdict for row in rows] == verdicts
    assert ("contexts" in facts) == (not verdicts)  # why it was not looked at


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a container for the sections."""
    folder = tmp_path_factory.mktemp("data")
    write_beton(folder / "train.beton", plain_item, count=40)
    return folder


@pytest.fixture
def found(data: Path, tmp_path: Path) -> Callable[[Callable[..., None]], dict[str, Row]]:
    """Return what runs a section in this process and returns its rows by name."""

    def run(work: Callable[..., None]) -> dict[str, Row]:
        stream, settings = io.StringIO(), CheckSettings("cpu", str(tmp_path), str(data))
        before = dict(os.environ)
        try:
            work(settings, Findings(0, stream, timed=False))
        finally:
            os.environ.clear()
            os.environ.update(before)
        path = tmp_path / "lines"
        path.write_text(stream.getvalue())
        return {row.what: row for row in read_findings(path)[0]}

    return run


def missed(rows: dict[str, Row]) -> list[str]:
    return [name for name, row in rows.items() if row.verdict == "MISSED"]


def test_what_is_there_is_told(found: Any) -> None:
    from benchmarks import gpu_numbers as section

    rows = found(section.imports)
    assert missed(rows) == [] and rows["DeepSpeed's accelerator is cpu"].verdict == "floor"
    assert rows["first batch, decoder compiled if it was not"].measured > 0.0


def test_right_numbers_pass_and_wrong_ones_are_found(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    from benchmarks import gpu_numbers as section

    def reference(
        settings: CheckSettings, out: Path
    ) -> None:  # in this process, and wrong if asked to
        tensors = section.trajectory(section.stepper(settings, section.started()))
        save_file({name: wrong * tensor for name, tensor in tensors.items()}, out)

    monkeypatch.setattr(section, "reference", reference)
    wrong = 1.0
    rows = found(section.numbers)
    assert len(rows) == 10 and missed(rows) == []
    wrong, plain = 1.001, section.stepper

    def stepper(*given: Any, stage: int = 0, **more: Any) -> Any:
        return plain(*given, stage=stage, precision="fp32" if stage < 2 else "bf16", **more)

    monkeypatch.setattr(section, "stepper", stepper)
    monkeypatch.setattr(section, "without_effect", lambda *given: None)
    assert [name.partition(",")[0] for name in missed(found(section.numbers))] == [
        "loss of 3 steps",
        "grad_norm of 3 steps",
        "weights after 3 LARS steps",
        "weights and momentum",
    ]


def test_steps_are_timed_by_parts(found: Any) -> None:
    from benchmarks import gpu_step as section

    rows = found(section.step)
    assert not any(row.verdict for row in rows.values())  # times on a CPU have no bars
    assert rows["step"].measured > rows["  colours"].measured > 0.0
    assert rows["share of the colours"].measured < 100.0
    assert "step at ZeRO stage 1" in rows


def test_a_waiting_section_runs(found: Any) -> None:
    from benchmarks import gpu_numbers as section

    rows = found(section.waits)
    assert len(rows) == 3 and missed(rows) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_check_passes_on_a_cpu(tmp_path: Path) -> None:
    code, lines = check(tmp_path)
    assert code == 0, "".join((tmp_path / f"section-{n}.log").read_text()[-2000:] for n in range(7))
    assert [line["state"] for line in lines] == ["done"] * 7 + ["skipped"]
    assert all(line["rows"] for line in lines[:7])


@pytest.mark.slow
def test_two_cpu_ranks_stop_and_go_on_as_several_gpus_do(found: Any) -> None:
    from benchmarks import gpu_runs as section

    rows = found(section.several)
    assert missed(rows) == [] and "20 steps of repo-pt" in rows
