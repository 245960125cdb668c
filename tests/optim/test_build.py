from __future__ import annotations

import pytest
import torch
from torch import nn

from harl_fast.errors import ConfigError
from harl_fast.optim.build import build_optimizer
from harl_fast.optim.groups import param_groups
from harl_fast.optim.lars import LARS


@pytest.mark.parametrize(
    ("name", "kind"), [("lars", LARS), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)]
)
def test_each_optimizer_takes_the_groups_and_lowers_a_loss(name: str, kind: type) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    groups = param_groups(module, weight_decay=1e-4)
    optimizer = build_optimizer(name, groups, lr=0.01, momentum=0.9, nesterov=True, trust=0.1)
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


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("lasr", {}, "did you mean 'lars'"),
        ("lars", {"formula": "byoll"}, "did you mean 'byol'"),
        ("sgd", {"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum"),
    ],
)
def test_a_wrong_choice_is_named(name: str, values: dict[str, object], named: str) -> None:
    groups = param_groups(nn.Linear(2, 2), weight_decay=0.0)
    with pytest.raises(ConfigError, match=named):
        build_optimizer(name, groups, lr=0.1, **values)  # type: ignore[arg-type]
