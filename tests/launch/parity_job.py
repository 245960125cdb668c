"""Train a small network at ZeRO stages 0, 1 and 2 on any number of ranks; results to a file.

One layer straddles the cut between two ranks, and the group without decay holds one number, less
than the ranks. There is no BatchNorm, so that the result must not depend on the rank count.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harl_fast import collectives
from harl_fast.engine import deepspeed as ds
from harl_fast.engine.config import read_engine_file, settle
from harl_fast.engine.machine import this_machine
from harl_fast.optim.groups import param_groups
from harl_fast.optim.lars import LARS
from tests.engine.support import disturb

LR = 0.3
CPU = Path(__file__).parents[2] / "ds_configs" / "cpu.json"
ACCUMULATION, ROWS, STEPS = 2, 8, 20


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=False)
        self.hidden = nn.Linear(5 * 16, 33, bias=False)
        self.out = nn.Linear(33, 7, bias=False)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).flatten(1)
        return (self.out(torch.tanh(self.hidden(x))) * self.gain).square().mean()


def rows_of(step: int, *, micro: int, rank: int, ranks: int) -> Tensor:
    every = torch.randn(ROWS, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    return every.view(ranks, ACCUMULATION, -1, 3, 6, 6)[rank, micro]


class PlainLARS(torch.optim.Optimizer):
    """LARS as published, which takes each tensor that it is handed for a layer."""

    applied = torch.tensor(True)

    def begin_step(self) -> None:
        """Nothing: it has no memory of steps."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                d = p.grad
                if p.ndim > 1:  # the usual rule: everything flat is a bias or belongs to a norm
                    d = d + group["weight_decay"] * p
                    d = d * (group["trust"] * p.norm() / d.norm())
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                p.sub_(group["lr"] * buffer.mul_(0.9).add_(d))


def train(
    stage: int,
    *,
    communication: str = "fp32",
    kind: Any = LARS,
    seen: dict[str, Tensor] | None = None,
    disturbed: bool = False,
) -> tuple[Net, ds.Engine, Any]:
    here = this_machine()
    overrides = [
        f"train_batch_size={ROWS}",
        f"gradient_accumulation_steps={ACCUMULATION}",
        f"zero_optimization.stage={stage}",
        f"communication_data_type={communication}",
        "harl_fast.shard_one_rank=true",
    ]
    config = settle(read_engine_file(CPU, overrides=overrides), ranks=here.ranks, source="cpu")
    torch.manual_seed(0)
    net = Net()
    if disturbed:
        disturb(net.parameters())
    groups = param_groups(net, weight_decay=1e-2)
    values = {"lr": LR, "trust": 0.02}
    optimizer = LARS(groups, **values) if kind is LARS else kind(groups, values)
    engine = ds.initialize(net, optimizer, config=config.deepspeed())
    if seen is not None:
        watch_gradients(net, engine, optimizer, seen)
    for step in range(STEPS):
        one_step(engine, optimizer, step=step)
    return net, engine, optimizer


def watch_gradients(net: Net, engine: ds.Engine, optimizer: LARS, seen: dict[str, Tensor]) -> None:
    """Keep, whole and by name, the first step's gradients as the optimizer is handed them."""
    names = names_of(net)

    def look(optimizer: LARS, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if engine.zero_optimization_stage() == 0:
                    seen.setdefault(names[p], p.grad.clone())
                    continue
                (flat,) = [flat for flat in ds.flat_groups(engine) if flat.shard is p]
                for parameter, grad in zip(flat.parameters, flat.gather(p.grad), strict=True):
                    seen.setdefault(names[parameter], grad.clone())

    optimizer.register_step_pre_hook(look)


def one_step(engine: ds.Engine, optimizer: LARS, *, step: int, broken_rank: int = -1) -> None:
    here = this_machine()
    optimizer.begin_step()
    for micro in range(ACCUMULATION):
        loss = engine(rows_of(step, micro=micro, rank=here.rank, ranks=here.ranks))
        if here.rank == broken_rank and micro == 0:
            # Reaches one parameter of the second group alone, on one rank alone.
            loss = loss + engine.module.gain.sum() * float("nan") * (loss.detach() * 0 + 1)
        engine.backward(loss)
        if micro == ACCUMULATION - 1:
            optimizer.applied = optimizer.applied & torch.isfinite(ds.gradient_norm(engine))
        engine.step()


def names_of(net: Net) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in net.named_parameters()}


def check_restore(net: Net, engine: ds.Engine, optimizer: LARS) -> dict[str, Tensor]:
    """Return the whole optimizer state; writing it back must change nothing."""
    names = names_of(net)
    live = ds.optimizer_state(engine, optimizer, names)
    state = {name: tensor.clone() for name, tensor in live.items()}
    shards = [p for group in optimizer.param_groups for p in group["params"]]
    before = [optimizer.state[shard]["momentum_buffer"].clone() for shard in shards]
    for shard in shards:
        optimizer.state[shard]["momentum_buffer"].fill_(9.0)
    ds.load_optimizer_state(engine, optimizer, names, state=state)
    for shard, old in zip(shards, before, strict=True):
        assert torch.equal(optimizer.state[shard]["momentum_buffer"], old)
    return state


def main(out: Path) -> None:
    here = this_machine()
    ds.start(here, timeout_minutes=10)
    found: dict[str, Tensor] = {}
    for case in ("0", "1", "2", "disturbed"):
        gradients: dict[str, Tensor] = {}
        disturbed = case == "disturbed"
        stage = 0 if disturbed else int(case)
        net, engine, optimizer = train(stage, seen=gradients, disturbed=disturbed)
        found |= {f"{case}.grad.{name}": grad for name, grad in gradients.items()}
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        found |= {f"{case}.{name}": tensor for name, tensor in before.items()}
        state = check_restore(net, engine, optimizer)
        found |= {f"{case}.state.{name}": tensor.clone() for name, tensor in state.items()}
        found[f"{case}.grad_norm"] = optimizer.grad_norm
        one_step(engine, optimizer, step=STEPS, broken_rank=here.ranks - 1)
        assert not bool(optimizer.applied)
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter, before[name]), f"case {case} moved {name}"
    net, _, _ = train(1, communication="bf16")
    found |= {f"narrow.{name}": p.detach().clone() for name, p in net.named_parameters()}

    net, _, _ = train(1, kind=PlainLARS)
    found |= {f"plain1.{name}": p.detach().clone() for name, p in net.named_parameters()}
    net, _, _ = train(0, kind=PlainLARS)
    found |= {f"plain0.{name}": p.detach().clone() for name, p in net.named_parameters()}

    spread = [torch.full((2, 2), float(here.rank)), torch.full((3,), 10.0 * here.rank)]
    collectives.average_over_ranks(spread)
    assert spread[0].unique().item() == (here.ranks - 1) / 2, spread
    assert spread[1].unique().item() == 10.0 * (here.ranks - 1) / 2, spread
    assert collectives.any_rank(here.rank == here.ranks - 1)
    assert not collectives.any_rank(False)
    save_file(found, out / f"rank{here.rank}of{here.ranks}.safetensors")
    ds.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
