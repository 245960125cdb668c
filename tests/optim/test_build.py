from __future__ import annotations

import pytest
import torch
from torch import nn

from harl_fast.config import OptimConfig
from harl_fast.errors import ConfigError
from harl_fast.optim.build import build_optimizer
from harl_fast.optim.lars import LARS


@pytest.mark.parametrize(
    ("name", "kind"), [("lars", LARS), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)]
)
def test_each_optimizer_takes_the_groups_and_lowers_a_loss(name: str, kind: type) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    values = {"name": name, "lr": 0.01, "weight_decay": 1e-4, "nesterov": True, "trust": 0.1}
    optimizer = build_optimizer(OptimConfig.model_validate(values), module)
    assert type(optimizer) is kind
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-4, 0.0]
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_wrong_choice_is_named() -> None:
    with pytest.raises(ConfigError, match="nesterov needs a momentum"):
        build_optimizer(OptimConfig(name="sgd", nesterov=True, momentum=0.0), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="did you mean 'byol'"):
        LARS(nn.Linear(2, 2).parameters(), lr=0.1, formula="byoll")
