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
    region_distance,
    spread_penalty,
    symmetric_loss,
    term_weights,
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
    p1, p2, z1, z2 = embeddings()
    everything = np.ones(ROWS, dtype=bool)
    expected = oracle.byol_sum(arrays(p1, p2), arrays(z1, z2), everything)
    got = symmetric_loss(p1, p2, z1, z2)
    torch.testing.assert_close(got.item(), expected, rtol=64 * EPS64, atol=0.0)


def test_unusable_rows_add_nothing_and_the_divisor_stays() -> None:
    p1, p2, z1, z2 = embeddings()
    usable = torch.tensor([True, False, True, True, False, True])
    expected = oracle.byol_sum(arrays(p1, p2), arrays(z1, z2), usable.numpy())
    got = symmetric_loss(p1, p2, z1, z2, usable=usable)
    torch.testing.assert_close(got.item(), expected, rtol=64 * EPS64, atol=0.0)
    halves = [
        symmetric_loss(p1[h], p2[h], z1[h], z2[h], usable=usable[h])
        for h in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), got)


def test_no_gradient_reaches_the_target_side() -> None:
    p1, p2, z1, z2 = (t.requires_grad_() for t in embeddings())
    symmetric_loss(p1, p2, z1, z2).backward()
    assert p1.grad is not None and p2.grad is not None
    assert z1.grad is None and z2.grad is None


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
    p1, p2, z1, z2 = embeddings()
    usable = torch.zeros(ROWS, dtype=torch.bool)
    usable[rows] = True
    pairs = [(p1, z2), (p2, z1)]
    expected = sum(
        oracle.infonce(p.numpy()[rows], z.numpy()[rows], temperature=0.3) for p, z in pairs
    )
    p1.requires_grad_()
    got = contrast(p1, p2, z1, z2, temperature=0.3, usable=None if len(rows) == ROWS else usable)
    assert got.item() == pytest.approx(expected / ROWS, rel=256 * EPS64, abs=1e-15)
    got.backward()
    assert p1.grad is not None and not p1.grad[~usable].any()
    assert p1.grad[rows].any() == (len(rows) > 1)


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
