"""LARS on flat shards equals LARS on whole tensors: ranks as threads here, as processes below."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from harl_fast.model.norm import GroupedBatchNorm1d
from harl_fast.optim.formula import FORMULAS
from harl_fast.optim.lars import LARS
from harl_fast.optim.layout import GroupLayout, Segment, flat_layout

STEPS = 20
VALUES: dict[str, Any] = {"lr": 0.3, "momentum": 0.9, "trust": 0.02}
# 100 elements, cut at 50 (inside the second tensor) or at 34 and 68; the group "plain" has one
# element, so that with 2 or 3 ranks all but the first hold padding only.
SHAPES: dict[str, list[tuple[int, ...]]] = {"adapt": [(4, 2, 3), (6, 8), (4, 7)], "plain": [(1,)]}
DECAY = {"adapt": 0.01, "plain": 0.0}


def whole_tensors() -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: [torch.randn(shape, generator=generator) for shape in shapes]
        for name, shapes in SHAPES.items()
    }


def gradients(step: int) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1000 + step)
    grads = {
        name: [torch.randn(shape, generator=generator) for shape in shapes]
        for name, shapes in SHAPES.items()
    }
    if step == 5:
        grads["adapt"][1].zero_()
    if step == 9:
        grads["adapt"][2][3, 6] = torch.nan  # the last element, on the last rank alone
    return grads


def cut(tensors: list[torch.Tensor], *, rank: int, world: int) -> torch.Tensor:
    """Return a rank's part of the concatenated tensors, padded with zeros to equal parts."""
    flat = torch.cat([t.flatten() for t in tensors])
    size = -(-flat.numel() // world)
    padded = torch.zeros(size * world)
    padded[: flat.numel()] = flat
    return padded[rank * size : (rank + 1) * size].clone()


def group(name: str, params: list[nn.Parameter]) -> dict[str, Any]:
    return {
        "name": name,
        "lars": name == "adapt",
        "weight_decay": DECAY[name],
        "params": params,
    }


def reference(**values: Any) -> dict[str, torch.Tensor]:
    """Return each group's concatenated weights after LARS on whole tensors."""
    tensors = {k: [nn.Parameter(t) for t in ts] for k, ts in whole_tensors().items()}
    optimizer = LARS([group(k, ts) for k, ts in tensors.items()], **VALUES, **values)
    for step in range(STEPS):
        for name, grads in gradients(step).items():
            for parameter, grad in zip(tensors[name], grads, strict=True):
                parameter.grad = grad
        optimizer.step()
        assert optimizer.applied.item() is (step != 9)
    return {k: torch.cat([t.detach().flatten() for t in ts]) for k, ts in tensors.items()}


def sharded(
    *, rank: int, world: int, process_group: Any, by_group: bool, **values: Any
) -> dict[str, torch.Tensor]:
    """Return a rank's shards after the same steps."""
    shards = {
        name: nn.Parameter(cut(tensors, rank=rank, world=world))
        for name, tensors in whole_tensors().items()
    }
    optimizer = LARS([group(k, [shard]) for k, shard in shards.items()], **VALUES, **values)
    optimizer.bind(
        [
            flat_layout(
                [t.numel() for t in tensors],
                start=rank * shards[name].numel(),
                stop=(rank + 1) * shards[name].numel(),
                process_group=process_group,
            )
            for name, tensors in whole_tensors().items()
        ]
    )
    both = optimizer.param_groups
    for step in range(STEPS):
        grads = gradients(step)
        for name, shard in shards.items():
            shard.grad = cut(grads[name], rank=rank, world=world)
        optimizer.begin_step()
        for chosen in [[g] for g in both] if by_group else [both]:
            optimizer.param_groups = chosen
            optimizer.step()
        optimizer.param_groups = both
        assert optimizer.applied.item() is (step != 9)
    return {name: shard.detach() for name, shard in shards.items()}


class Threads:
    """Ranks as threads: an all-reduce that adds up what each of them brings."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=600)
        self.parts: dict[int, torch.Tensor] = {}

    def all_reduce(self, values: torch.Tensor, *, group: int) -> None:
        self.parts[group] = values.clone()
        self.barrier.wait()
        total = torch.stack([self.parts[rank] for rank in sorted(self.parts)]).sum(0)
        self.barrier.wait()
        values.copy_(total)


def run_ranks(world: int, job: Callable[[int], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Run ``job`` of each rank in a thread and return the shards joined."""
    results: dict[int, dict[str, torch.Tensor]] = {}

    def run(rank: int) -> None:
        results[rank] = job(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == world, "a rank failed; see the traceback above"
    return {name: torch.cat([results[r][name] for r in range(world)]) for name in SHAPES}


def check_equal(joined: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, wanted in expected.items():
        got, padding = joined[name][: len(wanted)], joined[name][len(wanted) :]
        # Norms are added in another order. In each step that may cost a unit of 2^-24 of a weight,
        # and one of its way, which is below 1.
        slack = STEPS * 2**-24
        torch.testing.assert_close(got, wanted, rtol=slack, atol=slack)
        assert not padding.any()


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(
    ("world", "nesterov", "by_group"), [(1, False, True), (2, True, False), (3, False, False)]
)
def test_shards_step_like_whole_tensors(
    monkeypatch: pytest.MonkeyPatch, formula: str, world: int, nesterov: bool, by_group: bool
) -> None:
    threads = Threads(world)
    monkeypatch.setattr("harl_fast.optim.lars.dist.all_reduce", threads.all_reduce)
    values = {"formula": formula, "nesterov": nesterov}
    joined = run_ranks(
        world,
        lambda rank: sharded(
            rank=rank, world=world, process_group=rank, by_group=by_group, **values
        ),
    )
    check_equal(joined, reference(**values))


def test_plain_lars_on_shards_is_caught_by_this_comparison() -> None:
    """A shard taken for one tensor, without reduction, must not pass."""

    def naive(rank: int) -> dict[str, torch.Tensor]:
        shards = {k: nn.Parameter(cut(t, rank=rank, world=2)) for k, t in whole_tensors().items()}
        optimizer = LARS([group(k, [shard]) for k, shard in shards.items()], **VALUES)
        optimizer.bind([GroupLayout([Segment(0, s.numel(), 0)], 1) for s in shards.values()])
        for step in range(STEPS):
            for name, grads in gradients(step).items():
                shards[name].grad = cut(grads, rank=rank, world=2)
            optimizer.step()
        return {name: shard.detach() for name, shard in shards.items()}

    with pytest.raises(AssertionError, match="not close"):
        check_equal(run_ranks(2, naive), reference())


@pytest.mark.parametrize(
    ("segments", "named"),
    [
        ([Segment(1, 4, 0)], "misplaced"),
        ([Segment(0, 4, 0), Segment(5, 2, 1)], "misplaced"),
        ([Segment(0, 4, 2)], "misplaced"),
        ([Segment(0, 11, 0)], "11 elements"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(segments: list[Segment], named: str) -> None:
    optimizer = LARS([nn.Parameter(torch.ones(10))], lr=0.1)
    with pytest.raises(ValueError, match=named):
        optimizer.bind([GroupLayout(segments, n_params=2)])


def test_flat_layouts_cover_each_element_once() -> None:
    numels = [5, 1, 20, 3]
    for world in range(1, 12):
        size = -(-sum(numels) // world) + 1  # with padding
        covered = [0] * len(numels)
        for rank in range(world):
            layout = flat_layout(numels, start=rank * size, stop=(rank + 1) * size)
            end = 0
            for segment in layout.segments:
                assert segment.start == end
                end += segment.numel
                covered[segment.param_index] += segment.numel
        assert covered == numels


def joined_batch(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 6, 5, dtype=torch.float64, generator=generator)  # rank, group, row, D


def batchnorm_results(rows: torch.Tensor, weight: torch.Tensor, *, synced: bool) -> torch.Tensor:
    """Return gradients of the rows, weight and bias and the running statistics, joined."""
    layer = GroupedBatchNorm1d(5).double()
    layer.synced = synced
    rows = rows.clone().requires_grad_()
    out = layer(rows, groups=2)
    (out * weight).square().mean().backward()
    assert rows.grad is not None
    assert layer.weight.grad is not None and layer.bias.grad is not None
    shared = torch.stack([layer.weight.grad, layer.bias.grad])
    if synced:  # gradients are averaged over ranks, as by any data-parallel engine
        dist.all_reduce(shared)
        shared /= dist.get_world_size()
    statistics = [layer.get_buffer(name)[None] for name in ("running_mean", "running_var")]
    return torch.cat([rows.grad, shared, *statistics])


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world
    )
    for formula in FORMULAS:
        shards = sharded(
            rank=rank,
            world=world,
            process_group=dist.group.WORLD,
            by_group=True,
            formula=formula,
        )
        torch.save(shards, f"{folder}/{formula}.{rank}")
    rows, weight = (joined_batch(seed)[rank].flatten(0, 1) for seed in (0, 1))
    torch.save(batchnorm_results(rows, weight, synced=True), f"{folder}/bn.{rank}")
    dist.barrier()
    os._exit(0)  # gloo's threads abort some orderly exits, after a barrier too


def test_two_real_processes_agree_with_one(tmp_path: Path) -> None:
    world = 2
    spawn(process, args=(world, str(tmp_path)), nprocs=world)
    load = partial(torch.load, weights_only=True)

    for formula in FORMULAS:
        parts = [load(tmp_path / f"{formula}.{rank}") for rank in range(world)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in SHAPES}
        check_equal(joined, reference(formula=formula))

    # Synchronised head BatchNorm: as if both ranks' rows of each group were one batch.
    whole = [joined_batch(seed).transpose(0, 1).reshape(-1, 5) for seed in (0, 1)]
    expected = batchnorm_results(*whole, synced=False)
    per_rank = [load(tmp_path / f"bn.{rank}") for rank in range(world)]
    # A mean over half the rows makes each rank's own gradient twice as large.
    grads = torch.stack([r[:12].view(2, 6, 5) for r in per_rank]).transpose(0, 1).reshape(-1, 5) / 2
    for result in per_rank:
        torch.testing.assert_close(torch.cat([grads, result[12:]]), expected)
