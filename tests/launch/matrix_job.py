"""Every precision at every ZeRO stage on several ranks: the real network, engine and step.

Each rank sees its own batches. At some steps one rank alone gets infinite gradients. All stages
have weights of one memory layout: convolutions of others sum in another order, of which half
precision makes much. What came out goes to a file per rank; the test compares them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from harl_fast.engine import deepspeed as ds
from harl_fast.engine.machine import Machine, this_machine
from harl_fast.engine.trainer import Stepper, build
from tests.engine.support import (
    BATCH,
    FakeLoader,
    contiguous,
    disturb_both,
    engine_config,
    tiny_config,
)

STEPS, BROKEN, WINDOW, START = 9, (2, 3, 4), 2, 10
"""Steps; which of them one rank breaks; good steps until the loss scale doubles; its first log2."""
SECTIONS = {
    "fp32": [],
    "bf16": ["bf16.enabled=true"],
    "autocast": ["torch_autocast.enabled=true", "torch_autocast.dtype=bfloat16"],
    "fp16": [
        "fp16.enabled=true",
        f"fp16.initial_scale_power={START}",
        f"fp16.loss_scale_window={WINDOW}",
        "fp16.hysteresis=1",
    ],
}


def stepper(machine: Machine, folder: Path, *, precision: str, stage: int, name: str) -> Stepper:
    loader = FakeLoader(micro=BATCH // machine.ranks)
    config = tiny_config(
        folder,
        overrides=[
            f"optim.name={name}",
            "optim.lr=0.01",
            "optim.lr_scaling=none",
            "optim.warmup_epochs=0",
            "optim.weight_decay=0.3",  # enough to be missed
        ],
    )
    overrides = [f"zero_optimization.stage={stage}", *SECTIONS[precision]]
    engine = engine_config(ranks=machine.ranks, overrides=overrides)
    parts = build(config, engine, machine, loader=loader)  # type: ignore[arg-type]
    contiguous(parts)
    return Stepper(parts)


def trajectory(run: Stepper, *, broken_rank: int) -> dict[str, Tensor]:
    """Return, step by step, loss scale and verdict, and the networks' sums after each."""
    rank, loader = run.state.machine.rank, run.state.loader
    breaking = False
    # The first of the layers that the optimizer is handed, and on this rank alone.
    weight = run.state.harl.backbone.conv1.weight
    weight.register_hook(lambda grad: grad * float("inf") if breaking else grad)
    rows = []
    for step in range(STEPS):
        before, skipped = weight.detach().clone(), int(run.skipped)
        breaking = step in BROKEN and rank == broken_rank
        scale = run.state.scale
        run.advance([loader.batch(2 * step + rank)], epoch=0)  # type: ignore[attr-defined]
        networks = (run.state.harl, run.state.harl.target)
        sums = [sum(p.detach().double().abs().sum() for p in net.parameters()) for net in networks]
        factor = 0.0 if scale is None else float(scale.factor)
        moved = float(not torch.equal(before, weight))
        rows.append([factor, int(run.skipped) - skipped, moved, *map(float, sums)])
    out = {"rows": torch.tensor(rows, dtype=torch.float64)}
    for prefix, network in (("online", run.state.harl), ("target", run.state.harl.target)):
        for name, p in network.named_parameters():
            out[f"{prefix}.{name}"] = p.detach().clone().contiguous()
    return out


def main(folder: Path) -> None:
    machine = this_machine()
    ds.start(machine, timeout_minutes=10)
    found: dict[str, Tensor] = {}
    cases = [(precision, stage, "lars") for precision in SECTIONS for stage in (0, 1, 2)]
    cases += [("fp16", 0, "sgd"), ("fp16", 1, "adamw")]
    for precision, stage, name in cases:
        own = folder / f"rank{machine.rank}"
        own.mkdir(exist_ok=True)
        run = stepper(machine, own, precision=precision, stage=stage, name=name)
        result = trajectory(run, broken_rank=machine.ranks - 1)
        found |= {f"{precision}.{stage}.{name}/{key}": value for key, value in result.items()}
    run = stepper(machine, own, precision="fp32", stage=0, name="lars")
    disturb_both(run.state)
    result = trajectory(run, broken_rank=machine.ranks - 1)
    found |= {f"disturbed/{key}": value for key, value in result.items()}
    save_file(found, folder / f"rank{machine.rank}.safetensors")
    ds.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
