"""Runs killed by SIGKILL at any moment end with the bits of runs left alone."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harl_fast.config import load_config
from harl_fast.engine.checkpoint.format import open_checkpoint
from harl_fast.engine.networks import build_model
from tests.betons import plain_item, write_beton
from tests.engine.support import BATCH, assert_rounding_alone, distances, tiny_file
from tests.launch.jobs import LONG_S, run
from tests.launch.survival_job import MOVES

pytestmark = pytest.mark.slow

JOB = Path(__file__).with_name("survival_job.py")


def survive(folder: Path, *, kills: tuple[int, int], seed: int, limit_s: float) -> dict[str, Any]:
    write_beton(folder / "train.beton", plain_item, count=100)
    command = [sys.executable, JOB, folder, folder, *map(str, kills), str(seed)]
    result = run(command, log=folder / "job.log", limit_s=limit_s)
    log = folder / "log"
    assert result.code == 0, result.text + (log.read_text()[-4000:] if log.is_file() else "")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def tensors(folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    found = {f"ranks.{name}": tensor for name, tensor in checkpoint.tensors("ranks").items()}
    for prefix in ("online", "target", "optim"):
        found |= {f"{prefix}.{name}": t for name, t in checkpoint.tensors(prefix).items()}
    return found


def assert_survived(folder: Path, report: dict[str, Any], *, ranks: int, kills: int) -> None:
    *killed, last, whole = report[str(ranks)]
    assert len(killed) == kills and last["codes"] == whole["codes"] == [0] * ranks
    for start in killed:
        assert -9 in start["codes"], start  # it did die, and before the run's end
        assert 0 not in start["codes"], start  # and the other rank with it
    ours, theirs = tensors(folder / f"killed{ranks}"), tensors(folder / f"whole{ranks}")
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Five kills, three of them on one rank; and a run that moves between rank counts."""
    folder = tmp_path_factory.mktemp("survival")
    return folder, survive(folder, kills=(3, 2), seed=5, limit_s=LONG_S)


@pytest.mark.parametrize(("ranks", "kills"), [(1, 3), (2, 2)])
def test_a_killed_run_ends_with_the_same_bits(
    ordinary: tuple[Path, dict[str, Any]], ranks: int, kills: int
) -> None:
    assert_survived(*ordinary, ranks=ranks, kills=kills)


def test_running_statistics_are_saved_as_their_mean_over_ranks(
    ordinary: tuple[Path, dict[str, Any]],
) -> None:
    """Each rank's own, by which the bits come back, lie beside it in the networks' order."""
    found = tensors(ordinary[0] / "whole2")
    rows = found["ranks.statistics"]
    model = build_model(load_config(str(tiny_file(ordinary[0]))))
    names = [
        f"{prefix}.{name}"
        for prefix, network in (("online", model), ("target", model.target))
        for name, _ in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
    start = 0
    for name in names:
        stop = start + found[name].numel()
        assert torch.equal(found[name].flatten(), (rows[0, start:stop] + rows[1, start:stop]) / 2)
        start = stop
    assert rows.shape == (2, start)
    assert not torch.allclose(rows[0], rows[1], rtol=1e-2)  # they saw other halves of each batch


@pytest.mark.timeout(7200)
def test_fifty_random_kills(tmp_path: Path) -> None:
    report = survive(tmp_path, kills=(30, 20), seed=7, limit_s=7000.0)
    assert_survived(tmp_path, report, ranks=1, kills=30)
    assert_survived(tmp_path, report, ranks=2, kills=20)
    kinds = {start["kind"] for start in report["1"]}
    assert {"step", "save", "time"} < kinds
    assert any(start["from"] == start["to"] for start in report["1"])  # before any new checkpoint


def samples(folder: Path, name: str) -> dict[int, set[tuple[int, ...]]]:
    """Return each step's samples over all ranks, once for each time that it was done."""
    seen: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for first in sorted(folder.glob(f"{name}*.0")):
        steps: dict[int, list[int]] = defaultdict(list)
        for path in folder.glob(f"{first.stem}.?"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                steps[record["step"]] += record["ids"]
        for step, ids in steps.items():
            if len(ids) == BATCH:  # not the step at which one of two ranks died
                seen[step].add(tuple(sorted(ids)))
    return seen


def test_a_run_that_moves_between_rank_counts_sees_the_same_samples(
    ordinary: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = ordinary
    assert [-9 in start["codes"] for start in report["moved"]] == [True, True, False]
    ends = [start["to"] for start in report["moved"]]
    assert 0 < ends[0] <= MOVES[0][2] < ends[1] <= MOVES[1][2] < ends[2] == 12
    moved, still = samples(folder, "moved-"), samples(folder, "still")
    assert sorted(still) == list(range(12)) and all(len(ids) == 1 for ids in still.values())
    assert moved == still
    assert all(len(set(*ids)) == BATCH for ids in still.values())


@pytest.mark.parametrize("move", [1, 2])
def test_and_each_move_changes_the_next_step_by_rounding_alone(
    ordinary: tuple[Path, dict[str, Any]], move: int
) -> None:
    """Later steps say nothing: a unit in the last place ends 7 % apart on equal ranks too."""
    folder, report = ordinary
    name = f"step-{report['moved'][move - 1]['to'] + 1:08d}.safetensors"
    moved, stayed, disturbed = (
        weights(folder / run / "checkpoints" / name)
        for run in ("moved", f"stayed-{move}", f"disturbed-{move}")
    )
    one_rank = moved if MOVES[move][0] == 1 else stayed
    control = distances(disturbed, one_rank)
    assert_rounding_alone(distances(moved, stayed), control=control)


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return both networks' weights."""
    return {
        name: tensor
        for name, tensor in tensors(checkpoint).items()
        if name.startswith(("online.", "target.")) and name.endswith((".weight", ".bias"))
    }
