from __future__ import annotations

import pytest
import torch
from torch import nn

from harl_fast.model.heads import MLPHead
from harl_fast.model.norm import FiniteStatistics, GroupedBatchNorm1d

GROUPS, ROWS, DIM = 4, 6, 5
TIGHT = 1e-11  # float64, sums of a few dozen terms


def twins() -> tuple[GroupedBatchNorm1d, nn.BatchNorm1d, torch.Tensor]:
    torch.manual_seed(0)
    ours, theirs = GroupedBatchNorm1d(DIM).double(), nn.BatchNorm1d(DIM).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(GROUPS * ROWS, DIM, dtype=torch.float64) * 3 + 1


def test_groups_equal_separate_calls_forward_and_backward() -> None:
    ours, theirs, x = twins()
    weight = torch.randn_like(x)
    results = []
    for layer, run in (
        (ours, lambda rows: ours(rows, groups=GROUPS)),
        (theirs, lambda rows: torch.cat([theirs(part) for part in rows.chunk(GROUPS)])),
    ):
        rows = x.clone().requires_grad_()
        out = run(rows)
        (out * weight).square().sum().backward()
        results.append((out, rows.grad, layer.weight.grad, layer.bias.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=TIGHT, atol=TIGHT)


def test_running_statistics_move_once_by_the_mean_of_the_groups() -> None:
    ours, _, x = twins()
    ours(x, groups=GROUPS)
    singles = [nn.BatchNorm1d(DIM).double() for _ in range(GROUPS)]
    for single, part in zip(singles, x.chunk(GROUPS), strict=True):
        single(part)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([single.get_buffer(name) for single in singles]).mean(0)
        torch.testing.assert_close(ours.get_buffer(name), expected)
    assert ours.num_batches_tracked == 1


def test_evaluation_uses_the_running_statistics() -> None:
    ours, theirs, x = twins()
    assert torch.equal(ours.eval()(x, groups=GROUPS), theirs.eval()(x))


def test_statistics_stay_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer = GroupedBatchNorm1d(DIM)
    x = torch.randn(64, DIM).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    expected = nn.BatchNorm1d(DIM)(x.float())
    torch.testing.assert_close(out, expected.bfloat16(), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("rows", "groups"), [(6, 4), (4, 4)])
def test_uneven_or_single_row_groups_are_refused(rows: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows in {groups} groups"):
        GroupedBatchNorm1d(DIM)(torch.zeros(rows, DIM), groups=groups)


@pytest.mark.parametrize("layers", [2, 3])
def test_head_has_byols_layers(layers: int) -> None:
    head = MLPHead(8, 16, 4, layers=layers).double()
    x = torch.randn(2 * ROWS, 8, dtype=torch.float64)
    stack: list[nn.Module] = []
    for linear in head.linears:
        stack += [linear, nn.BatchNorm1d(16).double(), nn.ReLU()]
    plain = nn.Sequential(*stack, head.out)
    assert head.out.bias is None and all(linear.bias is not None for linear in head.linears)
    assert len(head.linears) == layers - 1
    expected = torch.cat([plain(part) for part in x.chunk(2)])
    torch.testing.assert_close(head(x, groups=2), expected, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, GroupedBatchNorm1d])
def test_an_overflow_leaves_running_statistics_finite(kind: type[nn.Module]) -> None:
    layer = kind(3).train()
    shape = (4, 3, 2, 2) if kind is nn.BatchNorm2d else (4, 3)
    statistics = FiniteStatistics(layer)
    layer(torch.randn(shape))
    statistics.restore()
    before = layer.running_mean.clone()
    bad = torch.randn(shape)
    bad[0, 1] = torch.inf
    layer(bad)
    assert not layer.running_mean.isfinite().all() and not layer.running_var.isfinite().all()
    expected = torch.where(layer.running_mean.isfinite(), layer.running_mean, before)
    statistics.restore()
    torch.testing.assert_close(layer.running_mean, expected, rtol=0, atol=0)
    assert layer.running_var.isfinite().all()
    moved = layer.running_mean.clone()
    layer(torch.randn(shape) + 5)
    statistics.restore()
    assert (layer.running_mean > moved).all()
