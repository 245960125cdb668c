from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from harl_fast.config import LossConfig
from harl_fast.errors import ConfigError
from harl_fast.model.loss import (
    LOSS_TERMS,
    contrast,
    matched_distance,
    region_distance,
    spread_penalty,
    term_weights,
    view_pairs,
)
from tests.oracles import losses as oracle

ROWS, DIM = 6, 16
LOSS_TYPES = get_args(LossConfig.model_fields["type"].annotation)
EPS64 = float(np.finfo(np.float64).eps)


def embeddings() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator) for _ in range(4)]


def arrays(*tensors: torch.Tensor) -> list[npt.NDArray[np.float64]]:
    return [tensor.numpy() for tensor in tensors]


def test_distance_is_byols() -> None:
    p, z, *_ = embeddings()
    expected = oracle.byol_distance(p.numpy(), z.numpy())
    # Sums of 16 products, and 2 - 2 cos cancels at most one digit here.
    np.testing.assert_allclose(region_distance(p, z).numpy(), expected, rtol=64 * EPS64)


def test_distance_has_its_extremes_at_0_and_4() -> None:
    p = torch.randn(3, DIM)
    values = torch.stack([region_distance(p, 5.0 * p), region_distance(p, -p)])
    torch.testing.assert_close(values, torch.tensor([[0.0] * 3, [4.0] * 3]))


def test_loss_is_the_sum_of_both_directions() -> None:
    p, z = torch.stack(embeddings()).chunk(2)
    everything = torch.ones(2, ROWS, dtype=torch.bool)
    expected = oracle.byol_sum(arrays(*p), arrays(*z), everything[0].numpy())
    got = matched_distance(p, z, usable=everything)
    torch.testing.assert_close(got.item(), expected, rtol=64 * EPS64, atol=0.0)


def test_unusable_rows_add_nothing_and_the_divisor_stays() -> None:
    p, z = torch.stack(embeddings()).chunk(2)
    usable = torch.tensor([[True, False, True, True, True, True], [True] * 4 + [False, True]])
    expected = oracle.byol_sum(arrays(*p), arrays(*z), usable.all(0).numpy())
    got = matched_distance(p, z, usable=usable)
    torch.testing.assert_close(got.item(), expected, rtol=64 * EPS64, atol=0.0)
    parts = zip(p.split(3, 1), z.split(3, 1), usable.split(3, 1), strict=True)
    halves = [matched_distance(a, b, usable=counts) for a, b, counts in parts]
    torch.testing.assert_close(torch.stack(halves).mean(), got)


def test_no_gradient_reaches_the_target_side() -> None:
    p, z = (rows.clone().requires_grad_() for rows in torch.stack(embeddings()).chunk(2))
    everything = torch.ones(2, ROWS, dtype=torch.bool)
    loss = matched_distance(p, z, usable=everything)
    (loss + contrast(p, z, temperature=0.3, usable=everything)).backward()
    assert p.grad is not None and p.grad.any(2).all() and z.grad is None


def test_each_view_is_matched_with_every_other_one_that_the_target_sees() -> None:
    assert view_pairs(2, 2) == [(0, 1), (1, 0)]
    assert view_pairs(4, 2) == [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]


@pytest.mark.parametrize(("views", "targets"), [(2, 2), (3, 2), (3, 3), (6, 2), (5, 4), (16, 2)])
def test_the_loss_of_any_number_of_views_is_twice_the_mean_over_pairs(
    views: int, targets: int
) -> None:
    generator = torch.Generator().manual_seed(views)
    p = torch.randn(views, ROWS, DIM, dtype=torch.float64, generator=generator)
    z = torch.randn(targets, ROWS, DIM, dtype=torch.float64, generator=generator)
    usable = torch.rand(views, ROWS, generator=generator) < 0.8
    parts = arrays(*p), arrays(*z), [rows.numpy() for rows in usable]
    # As above, and a mean over up to 30 pairs.
    got = matched_distance(p, z, usable=usable)
    assert got.item() == pytest.approx(oracle.mean_over_pairs(*parts), rel=256 * EPS64)
    got = contrast(p, z, temperature=0.3, usable=usable)
    expected = oracle.mean_over_pairs(*parts, temperature=0.3)
    assert got.item() == pytest.approx(expected, rel=256 * EPS64)


def test_gradient_is_the_numerical_one() -> None:
    p, z, *_ = embeddings()
    assert torch.autograd.gradcheck(lambda rows: region_distance(rows, z), (p.requires_grad_(),))


def test_zero_rows_and_half_precision_stay_finite_float32() -> None:
    p = torch.zeros(2, DIM, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = region_distance(p, torch.randn(2, DIM).bfloat16())
    assert distance.dtype == torch.float32
    distance.sum().backward()
    assert p.grad is not None and torch.isfinite(p.grad).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.3), (1.0, 0.0), (0.0, 1.0)])
def test_weights_build_the_published_totals(loss_type: str, alpha: float, beta: float) -> None:
    loss = LossConfig.model_validate({"type": loss_type})
    weights = term_weights(loss, alpha=alpha, beta=beta)
    assert list(weights) == list(LOSS_TERMS) == ["whole", "fg", "bg"]
    terms = {"whole": 1.7, "fg": 0.9, "bg": 2.3}
    got = sum(weights[name] * value for name, value in terms.items())
    expected = oracle.total(loss_type, terms, alpha=alpha, beta=beta)
    assert got == pytest.approx(expected, rel=8 * EPS64)
    assert sum(weights.values()) == pytest.approx(1.0, rel=8 * EPS64)


@pytest.mark.parametrize("name", ["ring", "fg"])
def test_a_weight_for_a_term_that_takes_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.extra\.{name}"):
        term_weights(LossConfig(extra={name: 0.5}), alpha=0.5, beta=0.5)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [0, 2, 3], [4], []])
def test_contrast_is_infonce_among_the_usable_rows(rows: list[int]) -> None:
    p, z = torch.stack(embeddings()).chunk(2)
    usable = torch.zeros(ROWS, dtype=torch.bool)
    usable[rows] = True
    pairs = [(p[0], z[1]), (p[1], z[0])]
    expected = sum(
        oracle.infonce(one.numpy()[rows], other.numpy()[rows], temperature=0.3)
        for one, other in pairs
    )
    p.requires_grad_()
    got = contrast(p, z, temperature=0.3, usable=usable.expand(2, ROWS))
    assert got.item() == pytest.approx(expected / ROWS, rel=256 * EPS64, abs=1e-15)
    got.backward()
    assert p.grad is not None and not p.grad[:, ~usable].any()
    assert p.grad[:, rows].any() == (len(rows) > 1)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [0, 2, 3]])
def test_spread_is_vicregs_variance_and_covariance_of_the_usable_rows(rows: list[int]) -> None:
    q = 0.7 * embeddings()[0]
    usable = torch.zeros(ROWS, dtype=torch.bool)
    usable[rows] = True
    expected = oracle.vicreg_spread(q.numpy()[rows])
    got = spread_penalty(q, usable=None if len(rows) == ROWS else usable)
    assert got.item() == pytest.approx(expected, rel=64 * EPS64)
    q.requires_grad_()
    spread_penalty(q, usable=usable).backward()
    assert q.grad is not None
    assert (q.grad[rows] != 0).any(1).all() and not q.grad[~usable].any()


@pytest.mark.parametrize("count", [0, 1])
def test_spread_of_too_few_rows_is_zero_with_finite_gradients(count: int) -> None:
    q = embeddings()[0].requires_grad_()
    value = spread_penalty(q, usable=torch.arange(ROWS) < count)
    value.backward()
    assert value.item() == 0.0 and q.grad is not None and not q.grad.any()


def test_spread_falls_when_equal_projections_are_drawn_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    q = (1e-3 * torch.randn(64, 4, generator=generator)).requires_grad_()
    before = spread_penalty(q).item()
    assert before == pytest.approx(1.0, abs=0.02)  # the deviations' floor is 0.01
    optimizer = torch.optim.Adam([q], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        value = spread_penalty(q)
        value.backward()
        optimizer.step()
    assert value.item() < 0.01 and q.std(0).min() > 0.95
