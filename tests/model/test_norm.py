"""BatchNorm over two real ranks against torch's own BatchNorm on the joined batch."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from harl_fast.model.norm import GroupedBatchNorm1d, RankBatchNorm2d

WORLD, GROUPS, DIM = 2, 3, 5
Results = dict[str, Tensor]


def seeded(layer: nn.BatchNorm1d | nn.BatchNorm2d, dtype: torch.dtype) -> Any:
    """Return a layer with weights that are not 1 and 0."""
    torch.manual_seed(1)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return layer.to(torch.promote_types(dtype, torch.float32))


def values(kind: str) -> tuple[Tensor, Tensor]:
    """Return inputs far from 0 and factors of the loss, per rank."""
    shape = (WORLD, 4, DIM, 6, 6) if kind == "maps" else (WORLD, GROUPS, 4, DIM)
    torch.manual_seed(0)
    return 3.0 * torch.randn(shape, dtype=torch.float64) + 50.0, torch.randn(shape).double()


def results(layer: Any, run: Any, x: Tensor, factors: Tensor) -> Results:
    """Return the output, all gradients of a mean square and the running statistics."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = run(x)
    (out.double() * factors).square().mean().backward()
    assert x.grad is not None and out.dtype == x.dtype and x.grad.dtype == x.dtype
    grads = {"grad": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    return {"out": out.detach(), **grads, **dict(layer.named_buffers())}


def shared(kind: str, dtype: torch.dtype, *, rank: int, compiled: bool) -> Results:
    """Return a rank's results with statistics over ranks."""
    x, factors = (each[rank] for each in values(kind))
    x = x.to(dtype)
    if kind == "maps":
        layer = seeded(RankBatchNorm2d(DIM), dtype)
        run, x = layer, x.to(memory_format=torch.channels_last)
    else:
        layer = seeded(GroupedBatchNorm1d(DIM), dtype)
        layer.synced = True
        run, x, factors = partial(layer, groups=GROUPS), x.flatten(0, 1), factors.flatten(0, 1)
    if compiled:
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    found = results(layer, run, x, factors)
    if kind == "maps":
        assert found["out"].is_contiguous(memory_format=torch.channels_last)
    for name in ("weight", "bias"):  # averaged over ranks, as by any data-parallel engine
        dist.all_reduce(found[name])
        found[name] /= WORLD
    found["grad"] = found["grad"] / WORLD  # of the mean over both ranks
    return found


def joined(kind: str, dtype: torch.dtype) -> Results:
    """Return torch's results on both ranks' values, of a type, as one batch in float64."""
    x, factors = values(kind)
    x = x.to(dtype).double()
    if kind == "maps":
        layer = seeded(nn.BatchNorm2d(DIM), torch.float64)
        return results(layer, layer, x.flatten(0, 1), factors.flatten(0, 1))
    layer = seeded(GroupedBatchNorm1d(DIM), torch.float64)  # see test_heads.py for this one
    rows = (each.transpose(0, 1).reshape(-1, DIM) for each in (x, factors))
    return results(layer, partial(layer, groups=GROUPS), *rows)


CASES = {
    f"{kind}-{str(dtype).removeprefix('torch.')}{'-compiled' * compiled}": (kind, dtype, compiled)
    for kind in ("maps", "rows")
    for dtype, compiled in (
        (torch.float64, False),
        (torch.float32, True),
        (torch.float32, False),
        (torch.bfloat16, False),
    )
}


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    for name, (kind, dtype, compiled) in CASES.items():
        found = shared(kind, dtype, rank=rank, compiled=compiled)
        torch.save(found, f"{folder}/{name}.{rank}")
    dist.barrier()
    os._exit(0)  # gloo's threads abort some orderly exits, after a barrier too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two processes have left their results."""
    path: Path = tmp_path_factory.mktemp("norm")
    spawn(process, args=(str(path),), nprocs=WORLD)
    return path


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_normalise_as_one_batch(folder: Path, case: str) -> None:
    kind, dtype, _ = CASES[case]
    ranks = [torch.load(folder / f"{case}.{r}", weights_only=True) for r in range(WORLD)]
    # Inputs near 50 with a deviation of 3 lose 20 units in the last place in sums of hundreds. In
    # half precision sums are float32's, and only a few results are rounded.
    rounding = (4 if dtype == torch.bfloat16 else 200) * torch.finfo(dtype).eps
    for name, expected in joined(kind, dtype).items():
        if name in ("out", "grad"):
            parts = [rank[name] for rank in ranks]
            if kind == "rows":
                parts = [part.view(GROUPS, -1, DIM) for part in parts]
            got = torch.cat(parts, dim=int(kind == "rows")).view(expected.shape)
            scale = float(expected.abs().max())
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=rounding * scale)
            continue
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        got = ranks[0][name].to(expected.dtype)
        torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)
