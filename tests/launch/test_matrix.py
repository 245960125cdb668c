"""Precisions at ZeRO stages on two ranks: one verdict on overflow, one loss scale, one network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.launch.jobs import run, torchrun
from tests.launch.matrix_job import BROKEN, SECTIONS, START, STEPS, WINDOW

JOB = Path(__file__).with_name("matrix_job.py")
CASES = [(precision, stage, "lars") for precision in SECTIONS for stage in (0, 1, 2)]
CASES += [("fp16", 0, "sgd"), ("fp16", 1, "adamw")]
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Return what each of two ranks found."""
    folder = tmp_path_factory.mktemp("matrix")
    result = run([*torchrun(2), JOB, folder], log=folder / "log", limit_s=280.0)
    assert result.code == 0, result.text
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


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


@pytest.mark.parametrize("precision", SECTIONS)
def test_stages_give_the_same_networks_at_every_precision(
    results: list[Found], precision: str
) -> None:
    reference = {
        key: value for key, value in results[0].items() if key.startswith(f"{precision}.0.lars")
    }
    for stage in (1, 2):
        for key, value in reference.items():
            got = results[0][key.replace(".0.", f".{stage}.", 1)].double()
            # fp32: convolutions of channels-last weights (stage 0) sum in another order.
            assert (got - value.double()).norm() <= 5e-5 * value.double().norm(), key


def test_both_ways_to_ask_for_bfloat16_are_one(results: list[Found]) -> None:
    for key, value in results[0].items():
        if key.startswith("bf16."):
            assert torch.equal(value, results[0]["autocast." + key.partition(".")[2]]), key
