"""Precisions at ZeRO stages on two ranks: one verdict on overflow, one loss scale, one network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.support import assert_rounding_alone, distances
from tests.launch.jobs import LONG_S, run, torchrun
from tests.launch.matrix_job import BROKEN, SECTIONS, START, STEPS, WINDOW

JOB = Path(__file__).with_name("matrix_job.py")
CASES = [(precision, stage, "lars") for precision in SECTIONS for stage in (0, 1, 2)]
CASES += [("fp16", 0, "sgd"), ("fp16", 1, "adamw")]
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Return what each of two ranks found."""
    folder = tmp_path_factory.mktemp("matrix")
    result = run([*torchrun(2), JOB, folder], log=folder / "log", limit_s=LONG_S)
    assert result.code == 0, result.text
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


def networks(found: Found, case: str) -> Found:
    """Return what a case made of both networks, by name."""
    prefix = f"{case}/"
    names = [key for key in found if key.startswith((f"{prefix}online.", f"{prefix}target."))]
    return {name.removeprefix(prefix): found[name] for name in names}


def expected_scales() -> list[float]:
    """Return the loss scale after each step: halved by an overflow, doubled after good ones."""
    scale, good, scales = 2.0**START, 0, []
    for step in range(STEPS):
        if step in BROKEN:
            scale, good = scale / 2, 0
        else:
            good += 1
            scale *= 2 if good % WINDOW == 0 else 1
        scales.append(scale)
    return scales


@pytest.mark.parametrize(("precision", "stage", "name"), CASES)
def test_ranks_agree_and_a_step_broken_on_one_moves_none(
    results: list[Found], precision: str, stage: int, name: str
) -> None:
    first, second = (found[f"{precision}.{stage}.{name}/rows"] for found in results)
    assert torch.equal(first, second)
    scales, skipped, moved, online, target = first.unbind(1)
    broken = torch.tensor([step in BROKEN for step in range(STEPS)])
    assert torch.equal(skipped.bool(), broken)
    assert torch.equal(moved.bool(), ~broken)
    for sums in (online, target):
        assert torch.isfinite(sums).all()
        assert torch.equal(sums[1:] == sums[:-1], broken[1:])
    wanted = expected_scales() if precision == "fp16" else [0.0] * STEPS
    assert scales.tolist() == wanted


@pytest.mark.parametrize(("precision", "stage", "name"), CASES)
def test_online_and_target_weights_are_equal_on_both_ranks(
    results: list[Found], precision: str, stage: int, name: str
) -> None:
    prefix = f"{precision}.{stage}.{name}/"
    names = [key for key in results[0] if key.startswith(prefix)]
    assert len(names) > 100
    for key in names:
        assert torch.equal(results[0][key], results[1][key]), key


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("precision", SECTIONS)
def test_stages_give_the_same_networks_at_every_precision(
    results: list[Found], precision: str, stage: int
) -> None:
    """But for the last places of norms, which no precision of activations reaches.

    The limit is float32's. In half precision a disturbance grows a hundred thousand times as
    large, and momentum left out would pass beside it.
    """
    found = distances(
        networks(results[0], f"{precision}.{stage}.lars"),
        networks(results[0], f"{precision}.0.lars"),
    )
    control = distances(networks(results[0], "disturbed"), networks(results[0], "fp32.0.lars"))
    assert_rounding_alone(found, control=control)


def test_both_ways_to_ask_for_bfloat16_are_one(results: list[Found]) -> None:
    for key, value in results[0].items():
        if key.startswith("bf16."):
            assert torch.equal(value, results[0]["autocast." + key.partition(".")[2]]), key
