from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harl_fast.errors import ConfigError
from harl_fast.model.pooling import cell_weight, global_mean, has_area, masked_mean
from tests.oracles import losses as oracle


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mean_and_usable_rows_match_the_oracle(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 3, 4, 6).to(memory_format=layout)
    weight = torch.rand(5, 4, 6)
    weight[1] = 0.0  # empty
    weight[2] = 0.0
    weight[2, 1, 1] = 0.5  # 2 % of the map
    weight[3] = 1.0
    mean, usable = masked_mean(features, weight, min_area=0.03)
    expected, enough = oracle.masked_mean(
        features.double().numpy(), weight.double().numpy(), min_area=0.03
    )
    assert usable.tolist() == enough.tolist() == [True, False, False, True, True]
    # A dot product of 24 terms and a division in float32.
    np.testing.assert_allclose(mean.numpy(), expected, rtol=0, atol=24 * 2**-23)


def test_whole_map_is_the_global_mean() -> None:
    features = torch.randn(3, 5, 7, 7)
    mean, usable = masked_mean(features, torch.ones(3, 7, 7), min_area=1e-3)
    torch.testing.assert_close(mean, global_mean(features))
    assert usable.all()


def test_small_regions_are_not_shrunk() -> None:
    features = torch.full((1, 2, 7, 7), 3.0)
    weight = torch.zeros(1, 7, 7)
    weight[0, 0, 0] = 0.25
    mean, _ = masked_mean(features, weight, min_area=1e-3)
    assert mean.tolist() == [[3.0, 3.0]]


def test_no_gradient_flows_from_cells_outside_the_region() -> None:
    features = torch.randn(1, 2, 2, 2, requires_grad=True)
    weight = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    masked_mean(features, weight, min_area=0.0)[0].sum().backward()
    assert features.grad is not None
    expected = torch.tensor([[2 / 3, 1 / 3], [0.0, 0.0]])
    torch.testing.assert_close(features.grad, expected.expand(1, 2, 2, 2))


def test_half_precision_maps_are_averaged_in_float32() -> None:
    features = torch.randn(2, 3, 32, 32).bfloat16()
    weight = torch.rand(2, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, _ = masked_mean(features, weight, min_area=0.0)
        whole = global_mean(features)
    assert mean.dtype == whole.dtype == torch.float32
    expected, _ = oracle.masked_mean(
        features.double().numpy(), weight.double().numpy(), min_area=0.0
    )
    # 1,024 terms; bfloat16 sums would miss by 2^-9 and more.
    np.testing.assert_allclose(mean.numpy(), expected, rtol=0, atol=1024 * 2**-24)
    torch.testing.assert_close(whole, features.double().mean((2, 3)).float())


def test_cell_weights_of_each_mode() -> None:
    coverage = torch.tensor([[0.0, 0.01], [0.5, 1.0]])
    assert cell_weight(coverage, mode="soft") is coverage
    area = cell_weight(coverage, mode="area", threshold=0.5)
    assert area.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert cell_weight(coverage, mode="any").tolist() == [[0.0, 1.0], [1.0, 1.0]]
    with pytest.raises(ConfigError, match=r"'sofd'.*did you mean 'soft'"):
        cell_weight(coverage, mode="sofd")


@given(st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_the_mean_lies_between_the_extremes_of_the_map(seed: int, min_area: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 3, 4, generator=generator)
    weight = (torch.rand(2, 3, 4, generator=generator) - 0.5).clamp_min(0.0)
    mean, usable = masked_mean(features, weight, min_area=min_area)
    slack = 1e-5
    assert (mean <= features.amax((2, 3)) + slack).all()
    assert (mean >= features.amin((2, 3)) - slack).all()
    assert torch.equal(usable, has_area(weight, min_area=min_area))
