"""LARS through the real engine gives the same weights at every stage and rank count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.launch.jobs import run, torchrun
from tests.launch.parity_job import Net

JOB = Path(__file__).with_name("parity_job.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Return what one rank and two ranks found, by file name."""
    folder = tmp_path_factory.mktemp("parity")
    for command in ([sys.executable], torchrun(2)):
        result = run([*command, JOB, folder], log=folder / "log")
        assert result.code == 0, result.text
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return |got - wanted| / |wanted|."""
    return float((got - wanted).double().norm() / wanted.double().norm())


def limit(results: dict[str, dict[str, Tensor]], kind: str = "") -> float:
    """Return ten times what one unit in the last place of every weight makes of the same steps.

    So much more for sums in another order, which come again in every step. kind: "grad." for the
    first step's gradients alone.
    """
    alone = results["rank0of1"]
    found = [
        distance(tensor, alone[f"0.{name.removeprefix('disturbed.')}"])
        for name, tensor in alone.items()
        if name.startswith(f"disturbed.{kind}")
    ]
    assert 0.0 < max(found) < 1e-4  # far below the faults that are looked for
    return 10.0 * max(found)


def test_both_ranks_hold_the_same_weights(results: dict[str, dict[str, Tensor]]) -> None:
    first, second = results["rank0of2"], results["rank1of2"]
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_and_momentum_equal_one_rank_at_stage_0(
    results: dict[str, dict[str, Tensor]], stage: int, ranks: int
) -> None:
    reference, found = results["rank0of1"], results[f"rank0of{ranks}"]
    names = [name for name in reference if name.startswith("0.")]
    assert len(names) == 4 + 4 + 4 + 1
    for name in names:
        assert distance(found[f"{stage}{name[1:]}"], reference[name]) < limit(results), name


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_of_two_ranks_are_one_ranks_on_the_joined_batch(
    results: dict[str, dict[str, Tensor]], stage: int
) -> None:
    alone, both = results["rank0of1"], results["rank1of2"]
    for name, _ in Net().named_parameters():
        assert alone[f"0.grad.{name}"].norm() > 0.0
        error = distance(both[f"{stage}.grad.{name}"], alone[f"0.grad.{name}"])
        assert error < limit(results, "grad."), name


def test_a_lars_that_knows_no_shards_fails_this_comparison(
    results: dict[str, dict[str, Tensor]],
) -> None:
    reference, found = results["rank0of1"], results["rank0of2"]
    for name in ("conv.weight", "hidden.weight", "out.weight"):
        # At stage 0, where tensors are layers, it is the same optimizer ...
        assert distance(found[f"plain0.{name}"], reference[f"0.{name}"]) < limit(results), name
        # ... and on ZeRO's flat shards another one, by far.
        error = distance(found[f"plain1.{name}"], reference[f"0.{name}"])
        assert error > 100.0 * limit(results), name


def test_the_weights_did_move(results: dict[str, dict[str, Tensor]]) -> None:
    torch.manual_seed(0)
    for name, start in Net().named_parameters():
        assert not torch.allclose(results["rank0of1"][f"0.{name}"], start, rtol=1e-2, atol=1e-3)


def test_a_narrow_reduction_is_close_and_not_equal(
    results: dict[str, dict[str, Tensor]],
) -> None:
    found = results["rank0of2"]
    for name in ("conv.weight", "hidden.weight", "out.weight"):
        narrow, wide = found[f"narrow.{name}"], found[f"1.{name}"]
        assert not torch.equal(narrow, wide)
        # bfloat16 keeps 8 bits of each gradient.
        assert (narrow - wide).norm() < 0.02 * wide.norm()
