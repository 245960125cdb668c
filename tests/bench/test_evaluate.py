"""`make bench-eval`: one program for all bars, whose sides run on equal threads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks import evaluate, finetune_step

SECONDS = {"all": 1.0, "boundary3": 0.5, "bare": 0.8}


class StandInField:
    """Processes whose loops' steps take as long as `SECONDS` says."""

    def __init__(self, made: dict[str, Any], **_: object) -> None:
        self.contenders = dict.fromkeys(made, self)
        ((_, plan),) = made.items()
        self.loops = plan["loops"]

    def ask(self, *, batches: int, **_: object) -> dict[str, Any]:
        figures = {name: SECONDS[name] for name in self.loops}
        return {"figures": [figures] * batches, "others": 0.0}

    def __enter__(self) -> StandInField:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_bars_of_steps_stand_in_the_same_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(finetune_step, "Field", StandInField)
    out = tmp_path / "evaluate.json"
    assert evaluate.main(["--only", "V7,V8", "--rounds", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    measured = {bar["bar"]: bar["measured"] for bar in found["bars"]}
    assert measured == pytest.approx({"V7": 0.5, "V8": 1.25})
    assert [len(turns) for turns in found["rounds"].values()] == [2, 2]
    steps = [ratio.bar for ratio in finetune_step.RATIOS]
    assert evaluate.parse([]).bars == (*evaluate.BARS, *steps)


def test_other_libraries_keep_to_the_threads_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []

    def side() -> None:
        np.ones((4, 4)) @ np.ones((4, 4))
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        seen.extend(pool["num_threads"] for pool in pools)

    data = SimpleNamespace(features=torch.zeros(1, 1))
    monkeypatch.setattr(evaluate, "Inputs", lambda _: SimpleNamespace(data=data, classes=2))
    bar = (lambda _: (side, side), "threads", 1.0, 1.0, False)
    monkeypatch.setattr(evaluate, "BARS", {"V1": bar})
    before = torch.get_num_threads()
    with threadpool_limits(1):
        evaluate.main(["--only", "V1", "--threads", "2", "--out", str(tmp_path / "x.json")])
    torch.set_num_threads(before)
    assert seen and set(seen) == {2}
