from __future__ import annotations

import numpy as np
import pytest
import torch

from harl_fast.config import ModelConfig
from harl_fast.errors import ConfigError
from harl_fast.model.backbones import build_backbone
from harl_fast.model.ema import ema_pairs, ema_update, shaped_like
from harl_fast.model.harl import Target
from harl_fast.model.heads import MLPHead
from tests.oracles import optimizers as oracle

SHAPES = [(4, 3, 3, 3), (7, 5), (6,), (1,)]


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.99, 0.996, 1.0])
@pytest.mark.parametrize("applied", [None, torch.tensor(True)])
def test_target_moves_by_the_formula(tau: float, applied: torch.Tensor | None) -> None:
    target, online = tensors(0, torch.float64), tensors(1, torch.float64)
    expected = [
        oracle.moving_average(t.numpy().copy(), o.numpy(), tau=tau)
        for t, o in zip(target, online, strict=True)
    ]
    ema_update(target, online, tau=tau, applied=applied)
    for got, wanted in zip(target, expected, strict=True):
        # Four roundings of up to 2^-53 of values below 4.
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=16 * 2**-53)


def test_a_step_that_was_not_applied_leaves_the_target_bit_identical() -> None:
    target, online = tensors(0), tensors(1)
    before = [t.clone() for t in target]
    ema_update(target, online, tau=0.9, applied=torch.tensor(False))
    assert all(torch.equal(a, b) for a, b in zip(target, before, strict=True))


def test_the_form_for_cuda_moves_the_same_bits_and_suits_its_kernels() -> None:
    shapes = [(64, 3, 7, 7), (129, 65), (1000,), (1,), (8, 16, 3, 3)]
    generator = torch.Generator().manual_seed(3)
    target, online = ([torch.randn(s, generator=generator) for s in shapes] for _ in range(2))
    for tensors in (target, online):
        tensors[-1] = tensors[-1].to(memory_format=torch.channels_last)
    expected = [tensor.clone() for tensor in target]
    ema_update(expected, online, tau=0.996, applied=torch.tensor(True))
    weights = shaped_like(target, torch.tensor(1.0) * (1.0 - 0.996))
    # What torch asks of lists that it works on at once (can_use_fast_route in ForeachUtils.h).
    for own, other, weight in zip(target, online, weights, strict=True):
        assert own.shape == other.shape == weight.shape
        assert own.stride() == other.stride() == weight.stride()
        assert own.dtype == other.dtype == weight.dtype
    torch._foreach_lerp_(target, online, weights)
    assert all(torch.equal(a, b) for a, b in zip(target, expected, strict=True))


def test_a_thousand_float32_steps_follow_the_formula() -> None:
    target, online = tensors(0), tensors(1)
    exact = [t.double().numpy() for t in target]
    for _ in range(1000):
        ema_update(target, online, tau=0.996)
        exact = [
            oracle.moving_average(t, o.double().numpy(), tau=0.996)
            for t, o in zip(exact, online, strict=True)
        ]
    for got, wanted in zip(target, exact, strict=True):
        # Each rounding of up to 2^-24 of a value below 4 is forgotten at the rate 0.004.
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=4 * 2**-24 / 0.004)


def test_pairs_are_matched_by_name_and_strictly() -> None:
    backbone = build_backbone(ModelConfig(arch="resnet18", stem="small", width=0.125))
    online = torch.nn.Module()
    online.predictor = MLPHead(4, 8, 4)
    online.projector = MLPHead(backbone.out_channels, 8, 4)
    online.backbone = backbone
    target = Target(backbone, online.projector)
    followers, leaders = ema_pairs(target, online)
    assert len(followers) == len(list(target.parameters()))
    assert all(torch.equal(f, o) for f, o in zip(followers, leaders, strict=True))
    assert all(f is not o for f, o in zip(followers, leaders, strict=True))

    online.projector = MLPHead(backbone.out_channels, 16, 4)
    with pytest.raises(ValueError, match=r"differ in .* parameters, the first being 'projector"):
        ema_pairs(target, online)
    online.projector = MLPHead(backbone.out_channels, 8, 4, layers=3)
    with pytest.raises(ValueError, match="differ"):
        ema_pairs(target, online)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_a_tau_outside_0_and_1_is_refused(tau: float) -> None:
    with pytest.raises(ConfigError, match=r"tau .*: give a finite number from 0 to 1"):
        ema_update([torch.ones(2)], [torch.ones(2)], tau=tau)
