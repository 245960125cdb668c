"""Kept features are those of the network, set and size that are asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harl_fast.eval.cache import FeatureCache
from harl_fast.eval.features import FeatureSet


def test_features_under_another_networks_name_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, sets = FeatureCache(tmp_path), {}
    for number, weights in enumerate("ab"):
        sets[weights] = FeatureSet(torch.full((3, 2), float(number)), torch.arange(3))
        cache.get({"weights": weights}, lambda weights=weights: sets[weights], name="train")
    paths = {weights: cache.path({"weights": weights}, name="train") for weights in "ab"}
    kept = cache.get({"weights": "b"}, lambda: pytest.fail("made again"), name="train")
    assert torch.equal(kept.features, sets["b"].features)
    shutil.copy(paths["a"], paths["b"])
    found = cache.get({"weights": "b"}, lambda: sets["b"], name="train")
    assert torch.equal(found.features, sets["b"].features)
    assert "those of another network" in capsys.readouterr().err
