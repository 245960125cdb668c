"""Kept features are those of the network, set and size that are asked for."""

from __future__ import annotations

import errno
import os
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


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.zeros(3), torch.arange(3)),
        (torch.zeros(3, 2, 1), torch.arange(3)),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(3, 2), torch.arange(2)),
        (torch.zeros(3, 2), torch.arange(3)[:, None]),
        (torch.zeros(3, 2, dtype=torch.int64), torch.arange(3)),
        (torch.full((3, 2), torch.nan), torch.arange(3)),
        (torch.zeros(0, 2), torch.arange(0)),
    ],
)
def test_kept_tensors_that_are_no_features_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], features: torch.Tensor, labels: torch.Tensor
) -> None:
    cache, sound = FeatureCache(tmp_path), FeatureSet(torch.ones(3, 2), torch.arange(3))
    cache.get({"weights": "a"}, lambda: FeatureSet(features, labels), name="train")  # sealed
    for _ in range(2):
        found = cache.get({"weights": "a"}, lambda: sound, name="train")
        assert torch.equal(found.features, sound.features)
    said = capsys.readouterr().err
    assert said.count("is damaged (its numbers are of another kind, or not finite)") == 1


def test_a_full_disk_costs_the_kept_features_and_not_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    made = FeatureSet(torch.ones(3, 2), torch.arange(3))
    assert FeatureCache(tmp_path).get({"weights": "a"}, lambda: made, name="x") is made
    assert "features are not kept" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_what_a_killed_process_left_of_features_is_removed(tmp_path: Path) -> None:
    made = FeatureSet(torch.ones(3, 2), torch.arange(3))
    old, new = (tmp_path / f".{name}.safetensors.1.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    FeatureCache(tmp_path).get({"weights": "a"}, lambda: made, name="x")
    assert new.exists() and not old.exists()
