"""One optimizer step through the real engine: settings, target, accumulation, broken gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harl_fast.engine.machine import Machine
from tests.engine.support import (
    BATCH,
    STAGES,
    STEPS,
    FakeLoader,
    advance,
    assert_equal,
    distances,
    disturb_both,
    stepper,
    target,
    weights,
)


@pytest.mark.parametrize("stage", STAGES)
def test_the_learning_rate_of_each_step_reaches_the_optimizer(
    machine: Machine, tmp_path: Path, stage: int
) -> None:
    run = stepper(machine, tmp_path, stage=stage)
    before = weights(run)
    advance(run)  # warm-up begins at 0
    assert_equal(weights(run), before)
    advance(run)
    moved = [name for name, old in before.items() if not torch.equal(weights(run)[name], old)]
    assert len(moved) == len(before)
    expected = run.state.schedule.at(1).lr
    assert expected > 0.0
    assert {group["lr"] for group in run.state.optimizer.param_groups} == {expected}


@pytest.mark.parametrize("stage", STAGES)
def test_two_runs_agree_bit_for_bit(machine: Machine, tmp_path: Path, stage: int) -> None:
    runs = [stepper(machine, tmp_path, stage=stage) for _ in range(2)]
    for run in runs:
        advance(run, 3)
    assert_equal(weights(runs[0]), weights(runs[1]))
    assert_equal(target(runs[0]), target(runs[1]))


@pytest.mark.parametrize("stage", STAGES)
def test_the_target_is_the_moving_average_of_what_the_engine_moved(
    machine: Machine, tmp_path: Path, stage: int
) -> None:
    run = stepper(machine, tmp_path, stage=stage)
    expected = {name: tensor.double() for name, tensor in target(run).items()}
    for step in range(4):
        advance(run)
        tau = run.state.schedule.at(step).tau
        for name, online in weights(run).items():
            if name in expected:
                expected[name] = tau * expected[name] + (1.0 - tau) * online.double()
    for name, tensor in target(run).items():
        # Four roundings of a sum and a product each.
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(tensor, weights(run)[name]) for name, tensor in target(run).items())


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_steps_once_and_sums_the_micro_batches(
    machine: Machine, tmp_path: Path, stage: int
) -> None:
    run = stepper(machine, tmp_path, stage=stage, micro=BATCH // 4)
    advance(run, 3)
    assert (run.step, run.state.engine.global_steps, run.state.engine.micro_steps) == (3, 3, 12)
    figures = run.meter.drain()
    assert figures["loss"] > 0.0 and figures["skipped"] == 0.0


@pytest.mark.parametrize("where", ["backbone.conv1.weight", "predictor.norms.0.bias"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_broken_gradient_anywhere_moves_nothing(
    machine: Machine, tmp_path: Path, stage: int, where: str
) -> None:
    run = stepper(machine, tmp_path, stage=stage, micro=BATCH // 2)
    advance(run, 2)
    run.meter.drain()
    before, before_target = weights(run), target(run)
    parameter = dict(run.state.harl.named_parameters())[where]
    hook = parameter.register_hook(lambda grad: grad * float("nan"))
    advance(run)
    hook.remove()
    assert_equal(weights(run), before)
    assert_equal(target(run), before_target)
    assert int(run.skipped) == 1 and run.meter.drain()["skipped"] == 1.0
    advance(run)  # the momentum is clean as well
    assert int(run.skipped) == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())
    assert not torch.equal(weights(run)["backbone.conv1.weight"], before["backbone.conv1.weight"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize(
    ("stage", "clipping", "precision"), [(0, 0.0, "fp32"), (1, 1.0, "fp32"), (2, 0.0, "fp16")]
)
def test_every_optimizer_skips_a_broken_step_whole(
    machine: Machine, tmp_path: Path, name: str, stage: int, clipping: float, precision: str
) -> None:
    engine = [f"gradient_clipping={clipping}"]
    if precision == "fp16":
        engine += ["fp16.enabled=true", "fp16.loss_scale=1024"]
    config = (f"optim.name={name}", "optim.lr=0.001", "optim.lr_scaling=none")
    run = stepper(machine, tmp_path, stage=stage, config=config, engine=tuple(engine))
    advance(run, 2)
    before, before_target = weights(run), target(run)
    parameter = run.state.harl.backbone.conv1.weight
    hook = parameter.register_hook(lambda grad: grad * float("inf"))
    advance(run)
    hook.remove()
    assert_equal(weights(run), before)
    assert_equal(target(run), before_target)
    assert int(run.skipped) == 1
    advance(run)  # neither momentum nor Adam's moments were touched
    assert int(run.skipped) == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())
    assert not torch.equal(weights(run)["backbone.conv1.weight"], before["backbone.conv1.weight"])


def test_sgd_whose_first_step_is_skipped_begins_with_zero_momentum(
    machine: Machine, tmp_path: Path
) -> None:
    run = stepper(machine, tmp_path, stage=1, config=("optim.name=sgd",))
    hook = run.state.harl.backbone.conv1.weight.register_hook(lambda grad: grad * float("inf"))
    advance(run)
    hook.remove()
    state = run.state.optimizer.state
    assert len(state) == 2
    assert all(not kept["momentum_buffer"].any() for kept in state.values())


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_finds_its_scale_and_then_steps_like_fp32(
    machine: Machine, tmp_path: Path, stage: int
) -> None:
    # 2^32 overflows in half precision for certain; each overflow halves it.
    fp16 = (
        "fp16.enabled=true",
        "fp16.initial_scale_power=32",
        "fp16.hysteresis=1",
        "fp16.loss_scale_window=1000",
    )
    run = stepper(machine, tmp_path, stage=stage, engine=fp16)
    before = weights(run)
    assert run.state.scale is not None
    for _ in range(40):
        tried = float(run.state.scale.factor)
        advance(run)
        run.step = 1  # the same batch and settings until it goes through
        if float(run.state.scale.factor) == tried:
            break
        assert float(run.state.scale.factor) == tried / 2
        assert_equal(weights(run), before)
    assert 1 <= int(run.skipped) < 40
    steps = []
    for disturbed in (False, True):
        reference = stepper(machine, tmp_path)
        if disturbed:
            disturb_both(reference.state, precision=torch.float16)
        reference.step, start = 1, weights(reference)
        advance(reference)
        steps.append({name: new - start[name] for name, new in weights(reference).items()})
    goal, control = steps
    got = {name: new - before[name] for name, new in weights(run).items()}
    # Half precision rounds weights and activations by half a unit each. It makes 0.2 of a step for
    # this thin network on noise; gradients that still carry the scale would be off by its size.
    nothing = {name: torch.zeros_like(step) for name, step in goal.items()}
    error, allowed, step = (
        math.hypot(*distances(other, goal).values()) for other in (got, control, nothing)
    )
    assert error < allowed < 0.7 * step


def test_bf16_keeps_weights_and_norms_in_fp32(machine: Machine, tmp_path: Path) -> None:
    run = stepper(machine, tmp_path, stage=1, engine=("bf16.enabled=true",))
    advance(run, 2)
    state = {**run.state.harl.state_dict(), **run.state.harl.target.state_dict()}
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
    assert run.meter.drain()["loss"] > 0.0


@pytest.mark.parametrize(("name", "stage"), [("sgd", 0), ("sgd", 1), ("adamw", 2)])
def test_the_other_optimizers_run(machine: Machine, tmp_path: Path, name: str, stage: int) -> None:
    config = (f"optim.name={name}", "optim.lr=0.001")
    run = stepper(machine, tmp_path, stage=stage, config=config)
    before = weights(run)
    advance(run, 3)
    assert not torch.equal(weights(run)["backbone.conv1.weight"], before["backbone.conv1.weight"])
    assert int(run.skipped) == 0


def test_an_epoch_of_the_stand_in_has_the_steps_it_claims() -> None:
    assert len(list(FakeLoader())) == STEPS


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_metered_gradient_norm_is_autograds(
    machine: Machine, tmp_path: Path, stage: int, name: str
) -> None:
    run = stepper(machine, tmp_path, stage=stage, config=(f"optim.name={name}",))
    loader: FakeLoader = run.state.loader  # type: ignore[assignment]
    views, cells = run._inputs(loader.batch(0), epoch=0)
    first = run.state.schedule.at(0)
    loss, _ = run.state.harl(views, cells, alpha=first.alpha, beta=first.beta)
    grads = torch.autograd.grad(loss, list(run.state.harl.parameters()))
    expected = torch.cat([grad.flatten() for grad in grads]).double().norm()
    advance(run)
    # float32 sums of about 1e5 squares against float64's.
    torch.testing.assert_close(
        torch.tensor(run.meter.drain()["grad_norm"]).double(), expected, rtol=1e-4, atol=0
    )


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, and shapes that depend on them."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self.NAMES or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def counted(monkeypatch: pytest.MonkeyPatch, waits: Waits) -> None:
    """Count reads that pass the dispatcher by on a CPU, too."""
    read_at_once = Tensor.numpy
    # LARS works on arrays where tensors lie in the host's memory, and on no other device.
    monkeypatch.setattr("harl_fast.optim.sweep.on_host", read_at_once)
    for name in ("tolist", "numpy", "cpu", "__array__"):
        read = getattr(Tensor, name)

        def spy(self: Tensor, *args: object, name: str = name, read: Any = read) -> object:
            if self.dtype != torch.int64:  # the samples' ids, which never leave the host
                waits.found.append(name)
            return read(self, *args)

        monkeypatch.setattr(Tensor, name, spy)


@pytest.mark.parametrize(
    ("stage", "name", "engine"),
    [
        *((stage, name, "fp32") for stage in STAGES for name in ("lars", "sgd", "adamw")),
        (0, "lars", "fp16"),
        (1, "lars", "bf16"),
        (2, "adamw", "fp16"),
    ],
)
def test_no_step_waits_for_the_device_but_where_figures_are_logged(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    name: str,
    engine: str,
) -> None:
    overrides = () if engine == "fp32" else (f"{engine}.enabled=true",)
    run = stepper(
        machine, tmp_path, stage=stage, engine=overrides, config=(f"optim.name={name}",), micro=8
    )
    advance(run, 1)  # DeepSpeed looks at the layout of its buffers once
    loader: FakeLoader = run.state.loader  # type: ignore[assignment]
    steps = [[loader.batch(2 * at), loader.batch(2 * at + 1)] for at in range(1, 4)]
    waits = Waits()
    counted(monkeypatch, waits)
    with waits:
        for batches in steps:
            run.advance(batches, epoch=0)
        assert waits.found == []
        run.meter.drain()
    assert waits.found != []
