"""Train a small network at ZeRO stages 0, 1 and 2 on any number of ranks; results to a file.

One layer straddles the cut between two ranks, and the group without decay holds one number, less
than the ranks. There is no BatchNorm, so that the result must not depend on the rank count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harl_fast.engine import ds
from harl_fast.engine.dsconfig import read_engine_file, settle
from harl_fast.engine.machine import this_machine
from harl_fast.optim.groups import param_groups
from harl_fast.optim.lars import LARS

CPU = Path(__file__).parents[2] / "ds_configs" / "cpu.json"
ACCUMULATION, ROWS, STEPS = 2, 8, 5


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


def train(stage: int, *, communication: str = "fp32") -> tuple[Net, ds.Engine, LARS]:
    here = this_machine()
    overrides = [
        f"train_batch_size={ROWS}",
        f"gradient_accumulation_steps={ACCUMULATION}",
        f"zero_optimization.stage={stage}",
        f"communication_data_type={communication}",
    ]
    config = settle(read_engine_file(CPU, overrides=overrides), ranks=here.ranks, source="cpu")
    torch.manual_seed(0)
    net = Net()
    optimizer = LARS(param_groups(net, weight_decay=1e-2), lr=1.0, trust=0.02)
    engine = ds.initialize(net, optimizer, config=config.deepspeed(guarded=True))
    for step in range(STEPS):
        one_step(engine, optimizer, step=step)
    return net, engine, optimizer


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
    ds.start(here, timeout_minutes=1)
    found: dict[str, Tensor] = {}
    for stage in (0, 1, 2):
        net, engine, optimizer = train(stage)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        found |= {f"{stage}.{name}": tensor for name, tensor in before.items()}
        state = check_restore(net, engine, optimizer)
        found |= {f"{stage}.state.{name}": tensor.clone() for name, tensor in state.items()}
        found[f"{stage}.grad_norm"] = optimizer.grad_norm
        one_step(engine, optimizer, step=STEPS, broken_rank=here.ranks - 1)
        assert not bool(optimizer.applied)
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter, before[name]), f"stage {stage} moved {name}"
    net, _, _ = train(1, communication="bf16")
    found |= {f"narrow.{name}": p.detach().clone() for name, p in net.named_parameters()}

    spread = [torch.full((2, 2), float(here.rank)), torch.full((3,), 10.0 * here.rank)]
    ds.average_over_ranks(spread)
    assert spread[0].unique().item() == (here.ranks - 1) / 2, spread
    assert spread[1].unique().item() == 10.0 * (here.ranks - 1) / 2, spread
    assert ds.any_rank(here.rank == here.ranks - 1)
    assert not ds.any_rank(False)
    save_file(found, out / f"rank{here.rank}of{here.ranks}.safetensors")
    ds.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
