"""Benchmarks try their output first, and say where their figures come from."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import loader, masks, step
from benchmarks.results import write_results
from harl_fast.errors import OutputError
from launch import demo


@pytest.mark.parametrize("program", [loader, masks, step])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(program: ModuleType) -> None:
    with pytest.raises(OutputError, match=r"--out /proc/none/x\.json cannot be written"):
        program.main(["--out", "/proc/none/x.json"])


def test_the_demo_tries_its_run_folder_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(demo, "run")
    with pytest.raises(OutputError, match="--run /proc/none/run cannot be written"):
        demo.main(["--run", "/proc/none/run"])


def test_figures_of_other_settings_stay(tmp_path: Path) -> None:
    out, machine = tmp_path / "step.json", {"cpu": "x", "load_before": [0.5]}
    for load, rounds in ((0.5, 1), (0.7, 1), (0.7, 2)):
        more = {"settings": {"rounds": rounds}, "rates": {}}
        write_results(out, [], machine=machine | {"load_before": [load]}, more=more)
    found = json.loads(out.read_text())
    assert found["provenance"]["settings"] == {"rounds": 2} and found["provenance"]["code"]
    (kept,) = set(tmp_path.iterdir()) - {out}
    assert json.loads(kept.read_text())["machine"]["load_before"] == [0.7]
