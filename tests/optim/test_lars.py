from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harl_fast.errors import ConfigError
from harl_fast.optim.formula import FORMULAS, move, rates, split_rate, trust_ratio
from harl_fast.optim.lars import LARS
from harl_fast.optim.layout import plan_of_tensors
from harl_fast.optim.sweep import sweep_of
from tests.oracles import optimizers as oracle

VALUES: dict[str, Any] = {"lr": 0.5, "momentum": 0.9, "trust": 0.02}
DECAY = 0.01
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "adapt": [(6, 3, 3, 3), (5, 7), (4, 4)],
    "plain": [(6,), (5,)],
}


def weights(dtype: torch.dtype = torch.float64) -> dict[str, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]
        for name, shapes in SHAPES.items()
    }


def groups(tensors: dict[str, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [
        {"name": "adapt", "lars": True, "weight_decay": DECAY, "params": tensors["adapt"]},
        {"name": "plain", "lars": False, "weight_decay": 0.0, "params": tensors["plain"]},
    ]


def set_grads(tensors: dict[str, list[nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for parameter in (p for members in tensors.values() for p in members):
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = draw.to(parameter.dtype)


def grad(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def flat(tensors: dict[str, list[nn.Parameter]]) -> list[torch.Tensor]:
    return [p.detach().clone() for members in tensors.values() for p in members]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_twenty_steps_follow_the_published_formula(formula: str, nesterov: bool) -> None:
    tensors = weights()
    with torch.no_grad():
        tensors["adapt"][2].zero_()  # a weight whose norm is 0: ratio 1
    optimizer = LARS(groups(tensors), formula=formula, nesterov=nesterov, **VALUES)
    exact = {
        key: [(p.detach().numpy().copy(), np.zeros(p.shape)) for p in members]
        for key, members in tensors.items()
    }
    for step in range(20):
        rate = 0.5 / (1 + step)  # so that a rate inside or outside the momentum differ
        set_grads(tensors, step)
        if step == 7:
            grad(tensors["adapt"][1]).zero_()
        for key, members in tensors.items():
            exact[key] = [
                oracle.LARS[formula](
                    w,
                    grad(p).numpy().copy(),
                    v,
                    lr=rate,
                    momentum=0.9,
                    weight_decay=DECAY if key == "adapt" else 0.0,
                    trust=0.02,
                    adapt=key == "adapt",
                    nesterov=nesterov,
                )
                for p, (w, v) in zip(members, exact[key], strict=True)
            ]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for key, members in tensors.items():
        for parameter, (w, v) in zip(members, exact[key], strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-12, atol=1e-13)
            buffer = optimizer.state[parameter]["momentum_buffer"]
            np.testing.assert_allclose(buffer.numpy(), v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_step_are_the_one_formula(
    formula: str, nesterov: bool, dtype: torch.dtype
) -> None:
    """Float32 in memory goes through the compiled sweep, all else through operations on tensors."""
    tensors = weights(dtype)
    optimizer = LARS(groups(tensors), formula=formula, nesterov=nesterov, **VALUES)
    for step in range(3):
        set_grads(tensors, step)
        expected = []
        for key, members in tensors.items():
            decay = DECAY if key == "adapt" else 0.0
            for p in members:
                w, g = p.detach().double(), grad(p).double()
                norms = [each.norm() for each in (w, g, g + decay * w)]
                rest = {"trust": VALUES["trust"], "decay": decay, "formula": formula}
                ratio = trust_ratio(*norms, adapt=key == "adapt", **rest)
                within, lr = split_rate(VALUES["lr"], formula=formula)
                along_ahead = rates(lr=lr, momentum=0.9, nesterov=nesterov)
                v = optimizer.state[p]["momentum_buffer"].double()
                expected.append(move(w, g, v, ratio * within, decay, 0.9, *along_ahead)[0])
        optimizer.step()
        slack = 1e-6 if dtype == torch.float32 else 1e-13
        for got, wanted in zip(flat(tensors), expected, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=slack, atol=slack)


def test_the_formulas_differ_from_each_other() -> None:
    ends = []
    for formula in FORMULAS:
        tensors = weights()
        optimizer = LARS(groups(tensors), formula=formula, **VALUES)
        for step in range(3):
            set_grads(tensors, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.5 / (1 + step)
            optimizer.step()
        ends.append(tensors["adapt"][0].detach())
    assert not any(torch.allclose(ends[i], ends[j], rtol=1e-6) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_norms_of_millions_of_elements_are_right_in_float32() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(1024, 2048))
    parameter.grad = torch.randn(1024, 2048)
    expected = parameter.grad.double().norm().item()
    optimizer = LARS([parameter], lr=0.1)
    optimizer.step()
    # Blocks of 4,096 float32 squares in four lanes or more: 32 x 2^-24 each, less over 512 blocks.
    # torch's own float32 norm on CPU errs by 2e-5 here.
    assert optimizer.grad_norm.item() == pytest.approx(expected, rel=1e-6)


def test_grad_norm_is_that_of_all_groups_before_decay() -> None:
    tensors = weights()
    set_grads(tensors, 0)
    grads = [grad(p).flatten() for members in tensors.values() for p in members]
    expected = torch.cat(grads).norm()
    optimizer = LARS(groups(tensors), **VALUES)
    optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["adapt", "plain"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_broken_gradient_anywhere_leaves_everything_untouched(
    bad: float, key: str, formula: str
) -> None:
    tensors = weights(torch.float32)
    optimizer = LARS(groups(tensors), formula=formula, **VALUES)
    set_grads(tensors, 0)
    optimizer.step()
    assert optimizer.applied.item() is True
    before = flat(tensors)
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for ps in tensors.values() for p in ps]
    set_grads(tensors, 1)
    grad(tensors[key][1]).view(-1)[3] = bad
    optimizer.step()
    assert optimizer.applied.item() is False
    after = [optimizer.state[p]["momentum_buffer"] for ps in tensors.values() for p in ps]
    for old, new in zip(before + momenta, flat(tensors) + after, strict=True):
        assert torch.equal(old, new)
    set_grads(tensors, 2)
    optimizer.step()
    assert optimizer.applied.item() is True
    assert not any(torch.equal(a, b) for a, b in zip(before, flat(tensors), strict=True))


def test_a_step_in_parts_is_one_step_and_remembers_a_broken_part() -> None:
    tensors = weights()
    optimizer = LARS(groups(tensors), **VALUES)
    both = optimizer.param_groups

    def step_by_group() -> None:  # as ZeRO does
        for group in both:
            optimizer.param_groups = [group]
            optimizer.step()
        optimizer.param_groups = both

    reference = weights()
    whole = LARS(groups(reference), **VALUES)
    for step in range(3):
        set_grads(tensors, step)
        set_grads(reference, step)
        step_by_group()
        whole.step()
        torch.testing.assert_close(optimizer.grad_norm, whole.grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(flat(tensors), flat(reference), strict=True))

    set_grads(tensors, 3)
    grad(tensors["adapt"][0]).fill_(float("nan"))
    before = flat(tensors)
    step_by_group()
    assert optimizer.applied.item() is False
    assert all(torch.equal(a, b) for a, b in zip(before, flat(tensors), strict=True))

    set_grads(tensors, 4)
    optimizer.begin_step()
    optimizer.applied = torch.tensor(False)  # the caller saw a broken gradient in a later group
    step_by_group()
    assert optimizer.applied.item() is False
    assert all(torch.equal(a, b) for a, b in zip(before, flat(tensors), strict=True))
    set_grads(tensors, 5)
    optimizer.begin_step()
    step_by_group()
    assert optimizer.applied.item() is True
    assert not torch.equal(before[0], flat(tensors)[0])


def test_zero_gradients_from_zero_momentum_change_nothing() -> None:
    tensors = weights()
    optimizer = LARS(groups(tensors), **VALUES)
    before = flat(tensors)
    tensors["adapt"][0].grad = torch.zeros_like(tensors["adapt"][0])  # the others have none
    optimizer.step()
    assert optimizer.applied.item() is True
    assert all(torch.equal(a, b) for a, b in zip(before, flat(tensors), strict=True))


def test_momentum_exists_before_the_first_step_and_survives_a_restore() -> None:
    tensors = weights(torch.float32)
    optimizer = LARS(groups(tensors), **VALUES)
    for members in tensors.values():
        for p in members:
            buffer = optimizer.state[p]["momentum_buffer"]
            assert buffer.shape == p.shape and not buffer.any()
    for step in range(3):
        set_grads(tensors, step)
        optimizer.step()
    twin_tensors = copy.deepcopy(tensors)
    twin = LARS(groups(twin_tensors), lr=9.0)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for current, owner in ((optimizer, tensors), (twin, twin_tensors)):
        set_grads(owner, 3)
        current.step()
    assert all(torch.equal(a, b) for a, b in zip(flat(tensors), flat(twin_tensors), strict=True))


def test_channels_last_weights_step_like_contiguous_ones() -> None:
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = weights(torch.float32)
        convolution = tensors["adapt"][0]
        convolution.data = convolution.data.to(memory_format=layout)
        optimizer = LARS(groups(tensors), **VALUES)
        for step in range(3):
            set_grads(tensors, step)
            convolution.grad = grad(convolution).to(memory_format=layout)
            optimizer.step()
        ends.append(convolution.detach())
    torch.testing.assert_close(ends[0], ends[1])


def test_moved_tensors_get_their_state_moved() -> None:
    tensors = weights(torch.float32)
    optimizer = LARS(groups(tensors), **VALUES)
    set_grads(tensors, 0)
    optimizer.step()
    kept = optimizer.state[tensors["plain"][0]]["momentum_buffer"]
    convolution = tensors["adapt"][0]
    old = optimizer.state[convolution]["momentum_buffer"]
    convolution.data = convolution.data.to(memory_format=torch.channels_last)
    optimizer.init_state()
    new = optimizer.state[convolution]["momentum_buffer"]
    assert torch.equal(old, new) and new.stride() == convolution.stride()
    assert optimizer.state[tensors["plain"][0]]["momentum_buffer"] is kept


def test_an_adapted_flat_tensor_without_a_layout_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(12))
    parameter.grad = torch.ones(12)
    optimizer = LARS([parameter], lr=0.1)
    with pytest.raises(RuntimeError, match=r"LARS\.bind"):
        optimizer.step()


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_sweeps_over_memory_step_like_float64_tensor_by_tensor(
    formula: str, nesterov: bool, layout: torch.memory_format
) -> None:
    exact, fast = weights(torch.float64), weights(torch.float32)
    fast["adapt"][0].data = fast["adapt"][0].data.to(memory_format=layout)
    for tensors in (exact, fast):
        with torch.no_grad():
            tensors["adapt"][2].zero_()  # a weight whose norm is 0: ratio 1
            for key, members in tensors.items():
                for a, b in zip(members, exact[key], strict=True):
                    a.copy_(b)
    values = VALUES | {"formula": formula, "nesterov": nesterov}
    optimizers = [LARS(groups(tensors), **values) for tensors in (exact, fast)]
    swept = [
        sweep_of(plan_of_tensors(t["adapt"]), *[[p.detach() for p in t["adapt"]]] * 3) is not None
        for t in (exact, fast)
    ]
    assert swept == [False, True]
    for step in range(20):
        for tensors, optimizer in zip((exact, fast), optimizers, strict=True):
            set_grads(tensors, step)
            if step == 7:
                grad(tensors["adapt"][1]).zero_()
            if step == 9:
                grad(tensors["plain"][1])[0] = torch.inf
            for group in optimizer.param_groups:
                group["lr"] = 0.5 / (1 + step)
            optimizer.step()
            assert optimizer.applied.item() is (step != 9)
    for got, wanted in zip(flat(fast), flat(exact), strict=True):
        # Twenty float32 steps: a unit of 2^-24 each in ratio, product and sum.
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_gradient_in_another_memory_layout_belongs_to_the_right_weights() -> None:
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = weights(torch.float32)
        set_grads(tensors, 0)
        convolution = tensors["adapt"][0]
        convolution.grad = grad(convolution).to(memory_format=layout)
        LARS(groups(tensors), **VALUES).step()
        ends.append(convolution.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("rest", [0.0, 1e-4, 1.0])
def test_a_decay_that_cancels_the_gradient_is_summed_as_it_is(rest: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, noise = (torch.randn(300, 512, generator=generator) for _ in range(2))
    gradient = rest * noise
    gradient[:200] -= 0.01 * weight[:200]
    plan = plan_of_tensors([weight])
    sweep = sweep_of(plan, [weight], [gradient], [torch.zeros_like(weight)])
    assert sweep is not None
    w, g, d = sweep.squares(decay=0.01)[:, 0].tolist()
    assert w == pytest.approx(float(weight.double().square().sum()), rel=1e-6)
    assert g == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)
    exact = gradient.double() + 0.01 * weight.double()
    assert d == pytest.approx(float(exact.square().sum()), rel=2e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    ends = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            generator = torch.Generator().manual_seed(5)
            # Of several pieces each, the last ones of another length.
            tensors = [torch.randn(n, 1000, generator=generator) for n in (1300, 7, 600)]
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape, generator=generator)
            optimizer = LARS(tensors, **VALUES)
            for _ in range(3):
                optimizer.step()
        finally:
            torch.set_num_threads(before)
        ends.append([*tensors, optimizer.grad_norm])
    for one, three in zip(*ends, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lr": value} for value in (-1.0, math.nan, math.inf)),
        *({"momentum": value} for value in (-0.1, 1.5)),
        *({name: -1.0} for name in ("trust", "weight_decay")),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} .*: give a finite number from 0"):
        LARS([torch.nn.Parameter(torch.ones(2, 2))], **{"lr": 0.1, **wrong})
