"""The accuracy of every kept checkpoint of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from harl_fast.engine.checkpoint.format import open_checkpoint, write_checkpoint
from harl_fast.tools.compare import main
from harl_fast.tools.comparison import compare
from harl_fast.tools.curves import find_curves
from launch import lineval
from tests.eval.test_protocol import folder, run

__all__ = ["folder", "run"]  # fixtures
EMPTY = {"epoch": 1, "epoch_step": 0, "engine": {}, "data": {}}


def test_a_curve_is_what_each_kept_checkpoint_reaches(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_checkpoint(run)
    tensors = load_file(first.path)
    write_checkpoint(
        first.path.parent,
        tensors={k: t.flip(0) if t.ndim == 4 else t for k, t in tensors.items()},
        record={**EMPTY, "step": 2, "config": first.record.config},
    )
    options = ["--data", str(folder), "--workers", "1"]
    expected = []
    for step in (1, 2):
        path = first.path.with_name(f"step-{step:08d}.safetensors")
        assert lineval.main(["--ckpt", str(path), "--epochs", "1", *options]) == 0
        judged = json.loads((path.parent / "lineval.json").read_text())
        expected.append((step, judged["pretrained"]["knn"]["top1"]))
    assert expected[0][1] != expected[1][1]
    (first.path.parent / "step-00000009.safetensors").write_bytes(b"cut short")
    results = [str(run / "eval" / f"{folder.name}-cached{end}") for end in ("-1", "")]
    later = run / "eval" / "of-a-later-version" / "result.json"
    later.parent.mkdir()
    later.write_text('{"format": 0}')
    out = tmp_path / "out"
    assert main([*results, "--out", str(out), "--curve", str(folder)]) == 0
    told = capsys.readouterr().err
    assert "left out: " in told and f"left out of the curves: {later}" in told
    (curve,) = (
        c for c in find_curves(compare([*map(Path, results)]), data=folder) if "k-NN" in c.what
    )
    assert curve.points == [(step, pytest.approx(top1)) for step, top1 in expected]
    for step, top1 in expected:
        assert f"| run | k-NN, top-1 | {step} | {top1:.2f} |" in (out / "report.md").read_text()
