"""BatchNorm over two CPU ranks, forward and backward: ours against torch's SyncBatchNorm.

G5: `python -m benchmarks.sync_norm`. torch's autograd function runs as it is; the CUDA kernels that
it calls are lent CPU forms here, made of the fast CPU kernels that ours use, too. What differs is
how often the ranks meet, and what is done around it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report
from harl_fast.options import whole_number
from harl_fast.program import head, run_main


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sync_norm", description=__doc__)
    count, about = whole_number(1, 10**4), "default %(default)s"
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help=about)
    return parser.parse_args(argv)


with head(__name__, parse):
    import torch
    import torch.distributed as dist
    from torch import Tensor, library
    from torch.multiprocessing.spawn import spawn
    from torch.nn.modules._functions import SyncBatchNorm

    from harl_fast.model.norm import GroupedBatchNorm1d, RankBatchNorm2d

WORLD, EPS, CALLS = 2, 1e-5, 6
GROUPS, ROWS, DIM = 4, 128, 4096
"""Two views of two regions each, images per rank, a head's hidden layer."""
MAPS = (16, 256, 14, 14)
RATIOS = (
    report.Ratio("G5", "own SyncBN over torch's, heads", "ours_rows", ("torch_rows",), 1.0, 1.5),
    report.Ratio("G5", "  maps of 256 channels", "ours_maps", ("torch_maps",)),
)


def lend_kernels() -> library.Library:
    """Give torch's SyncBatchNorm the kernels that it lacks on a CPU; keep what is returned."""
    lent = library.Library("aten", "IMPL")
    for name, kernel in (
        ("batch_norm_stats", _stats),
        ("batch_norm_gather_stats_with_counts", _gather),
        ("batch_norm_elemt", _normalise),
        ("batch_norm_backward_reduce", _reduce),
        ("batch_norm_backward_elemt", _backward),
    ):
        lent.impl(name, kernel, "CPU")
    return lent


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, torch.rsqrt(var + eps)


def _gather(
    x: Tensor, means: Tensor, inverses: Tensor, running_mean: Tensor, running_var: Tensor,
    momentum: float, eps: float, counts: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    var = (share * (inverses.pow(-2) - eps + (means - mean).square())).sum(0)
    total = counts.sum()
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (total / (total - 1)), momentum)
    return mean, torch.rsqrt(var + eps)


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    return torch.native_batch_norm(x, weight, bias, mean, inverse.pow(-2) - eps, False, 0.0, eps)[0]


def _reduce(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, *_: bool
) -> tuple[Tensor, ...]:
    _, scaled, total = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, mean, inverse.pow(-2) - EPS, None, None, False, EPS, [False, True, True]
    )
    return total, scaled / inverse, scaled, total


def _backward(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, total: Tensor,
    scaled: Tensor, counts: Tensor,
) -> Tensor:  # fmt: skip
    var = inverse.pow(-2) - EPS
    constant = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, mean, var, None, None, False, EPS, [True, False, False]
    )[0]
    share = weight * inverse / -counts.sum()
    moved = _normalise(x, share * scaled * inverse, share * total, mean, inverse, EPS)
    return constant.add_(moved)  # type: ignore[no-any-return]


def contenders() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Return what each contender calls, and its input."""
    rows, maps = torch.randn(GROUPS * ROWS, DIM), torch.randn(MAPS)
    maps = maps.to(memory_format=torch.channels_last)
    ours_rows, ours_maps = GroupedBatchNorm1d(DIM), RankBatchNorm2d(MAPS[1])
    ours_rows.synced = True

    def torchs(layer: Any, x: Tensor) -> Tensor:
        state = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        found: Tensor = SyncBatchNorm.apply(x, *state, EPS, 0.1, dist.group.WORLD, WORLD)
        return found

    theirs_rows, theirs_maps = GroupedBatchNorm1d(DIM), RankBatchNorm2d(MAPS[1])
    return {
        "ours_rows": (lambda x: ours_rows(x, groups=GROUPS), rows),
        "torch_rows": (
            lambda x: torch.cat([torchs(theirs_rows, part) for part in x.chunk(GROUPS)]),
            rows,
        ),
        "ours_maps": (ours_maps, maps),
        "torch_maps": (lambda x: torchs(theirs_maps, x), maps),
    }


def _timed(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the seconds of some passes, and the last output and gradient."""
    grad = torch.linspace(-1.0, 1.0, x.numel()).view(x.shape)
    grad = grad.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else grad
    dist.barrier()
    start = time.perf_counter()
    for _ in range(CALLS):
        leaf = x.detach().requires_grad_()
        out = run(leaf)
        out.backward(grad)
    assert leaf.grad is not None
    return time.perf_counter() - start, out.detach(), leaf.grad


def process(rank: int, folder: str, count: int) -> None:
    """Measure the contenders in turns, as one of two ranks."""
    torch.set_num_threads(1)
    store = f"file://{folder}/init"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    torch.manual_seed(rank)
    library, parts = lend_kernels(), contenders()
    first = {name: _timed(*part)[1:] for name, part in parts.items()}
    for kind in ("rows", "maps"):
        for got, expected in zip(first[f"ours_{kind}"], first[f"torch_{kind}"], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    rounds = [{name: 1.0 / _timed(*part)[0] for name, part in parts.items()} for _ in range(count)]
    if rank == 0:
        Path(folder, "rates.json").write_text(json.dumps(rounds))
    del library
    dist.barrier()
    os._exit(0)  # gloo's threads abort some orderly exits


def main(argv: list[str] | None = None) -> int:
    """Print the table; return 1 if a floor is missed."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        spawn(process, args=(folder, args.rounds), nprocs=WORLD)
        rounds = json.loads(Path(folder, "rates.json").read_text())
    speeds = {name: [each[name] for each in rounds] for name in rounds[0]}
    rows = report.ratio_rows(speeds, RATIOS)
    for row in rows:
        assert row.spread is not None
        between = f"{row.spread.least:.2f} to {row.spread.most:.2f}"
        print(f"{row.bar}  {row.what:38} {row.measured:5.2f} x  ({between})  {row.verdict}")
    for name, rates in speeds.items():
        print(f"    {name:12} {1000 / CALLS / report.spread(rates).median:8.2f} ms")
    return int(any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    run_main(main)
