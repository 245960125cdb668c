"""Autocast around fp32 parameters, and the loss scale against its rule in plain Python."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from harl_fast.engine.config import Fp16Section
from harl_fast.engine.precision import Autocast, LossScale

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_only_the_activations_are_narrow(precision: str, dtype: torch.dtype) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    out = Autocast(inner, precision=precision)(torch.randn(2, 3, 8, 8))  # type: ignore[arg-type]
    assert out.dtype == dtype
    out.float().sum().backward()
    for tensor in (*inner.parameters(), inner[1].running_mean):
        assert tensor.dtype == torch.float32  # type: ignore[union-attr]
    assert all(p.grad.dtype == torch.float32 for p in inner.parameters())  # type: ignore[union-attr]


def rule(outcomes: list[bool], section: Fp16Section) -> list[float]:
    """Return the factor after each step, by DeepSpeed's rule written with plain numbers."""
    factor, good, left = 2.0**section.initial_scale_power, 0, section.hysteresis
    factors = []
    for applied in outcomes:
        if applied:
            good += 1
            if section.consecutive_hysteresis:
                left = section.hysteresis
            if good % section.loss_scale_window == 0:
                factor, left = factor * 2, section.hysteresis
        else:
            good = 0
            if left == 1:
                factor = max(factor / 2, section.min_loss_scale)
            else:
                left -= 1
        factors.append(factor)
    return factors


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_the_factor_follows_the_rule(hysteresis: int, consecutive: bool) -> None:
    section = Fp16Section(
        initial_scale_power=5,
        loss_scale_window=3,
        hysteresis=hysteresis,
        consecutive_hysteresis=consecutive,
        min_loss_scale=4,
    )
    draw = random.Random(hysteresis)
    outcomes = [draw.random() < 0.6 for _ in range(200)]
    scale = LossScale(section, device=CPU)
    factors = []
    for applied in outcomes:
        scale.update(torch.tensor(applied))
        factors.append(float(scale.factor))
    assert factors == rule(outcomes, section)
    assert len(set(factors)) > 3  # it did move


def test_a_constant_factor_stays() -> None:
    scale = LossScale(Fp16Section(loss_scale=128.0), device=CPU)
    for _ in range(5):
        scale.update(torch.tensor(False))
    assert float(scale.factor) == 128.0


def test_the_state_continues_where_it_was() -> None:
    section = Fp16Section(loss_scale_window=4, initial_scale_power=3)
    first, second = LossScale(section, device=CPU), LossScale(section, device=CPU)
    for applied in (True, False, False, True, True, True):
        first.update(torch.tensor(applied))
    second.load(first.state())
    for scale in (first, second):
        scale.update(torch.tensor(True))
    assert first.factor == second.factor == 8.0


def test_the_optimizer_sees_gradients_without_the_factor() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scale = LossScale(Fp16Section(loss_scale=64.0), device=CPU)
    scale.attach(optimizer)
    ((weight * torch.tensor([3.0, 5.0])).sum() * scale.factor).backward()
    optimizer.step()
    assert weight.tolist() == [-2.0, -3.0]
