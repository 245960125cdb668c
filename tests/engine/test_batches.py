"""Batches of one image: refused with the reason where BatchNorm cannot work, else allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harl_fast.engine.machine import Machine
from harl_fast.engine.views import build_loader
from harl_fast.errors import ConfigError, DataError
from harl_fast.model import norm
from harl_fast.model.norm import GroupedBatchNorm1d
from tests.engine.support import engine_config, tiny_config


def refusal(tmp_path: Path, *, ranks: int, overrides: tuple[str, ...] = ()) -> str:
    """Return why no loader is built; the folder holds no container, which is asked for last."""
    batches = engine_config(ranks=ranks, overrides=["train_micro_batch_size_per_gpu=1"])
    config = tiny_config(tmp_path, overrides=overrides)
    with pytest.raises((ConfigError, DataError)) as caught:
        build_loader(config, batches, Machine(ranks=ranks), data=tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ()),
        (1, ("model.sync_bn=all",)),
        (2, ()),
        (2, ("model.sync_bn=heads", "model.last_stride=2", "data.size_schedule=16")),
    ],
)
def test_a_single_image_is_refused_where_it_would_be_normalised_alone(
    tmp_path: Path, ranks: int, overrides: tuple[str, ...]
) -> None:
    message = refusal(tmp_path, ranks=ranks, overrides=overrides)
    assert "cpu.json" in message
    assert "micro batch 1" in message
    assert "train_micro_batch_size_per_gpu=2" in message


@pytest.mark.parametrize("term", ["contrast", "spread"])
def test_terms_that_compare_images_take_two_of_them(tmp_path: Path, term: str) -> None:
    """What BatchNorm may do with, statistics shared over ranks, leaves such terms at 0."""
    overrides = "model.sync_bn=heads", f"loss.{term}=0.5"
    message = refusal(tmp_path, ranks=2, overrides=overrides)
    assert f"loss.{term} compares the images of a micro batch and takes 2 or more" in message


@pytest.mark.parametrize("sync_bn", ["heads", "all"])
def test_a_single_image_is_allowed_where_ranks_share_statistics(
    tmp_path: Path, sync_bn: str
) -> None:
    message = refusal(tmp_path, ranks=2, overrides=(f"model.sync_bn={sync_bn}",))
    assert "train.beton" in message or "train.json" in message


def test_one_row_on_each_of_two_ranks_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[1.0, 2.0]])
    monkeypatch.setattr(norm.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(norm.dist, "get_world_size", lambda: 2)
    # The other rank holds the opposite row, so that the mean is zero.
    monkeypatch.setattr(norm, "_gathered", lambda own: torch.stack([own, -own]))
    layer = GroupedBatchNorm1d(2)
    layer.synced = True
    torch.testing.assert_close(layer(rows), torch.ones(1, 2), rtol=1e-4, atol=0)


def test_one_row_alone_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2 over all ranks"):
        GroupedBatchNorm1d(2)(torch.ones(1, 2))
