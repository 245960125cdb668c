"""Altered views against pixel by pixel oracles, and what a head of known features says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harl_fast.config import RunConfig
from harl_fast.engine.networks import untrained
from harl_fast.eval.results import Head
from harl_fast.tools import evidence_probes
from harl_fast.tools.evidence_probes import blanked, partners, pasted, probe
from tests.betons import Item, write_beton


def noise(count: int, side: int = 12, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_blanked_views_keep_what_is_covered_and_are_plain_elsewhere(channels: int) -> None:
    views, fill = noise(2, channels=channels), [10.0, 20.0, 30.0][:channels]
    cover = np.zeros((2, 12, 12), np.float32)
    cover[:, 3:7, 2:9], cover[1, 0, 0] = 1.0, 0.25
    found = blanked(views, cover, fill)
    for n, y, x, c in np.ndindex(found.shape):
        share = float(cover[n, y, x])
        assert found[n, y, x, c] == round(share * int(views[n, y, x, c]) + (1 - share) * fill[c])


@pytest.mark.parametrize("channels", [1, 3])
def test_pasted_views_stand_on_the_other_one_s_background_without_its_object(channels: int) -> None:
    ours, theirs = (
        np.full((12, 12, channels), 200, np.uint8),
        np.full((12, 12, channels), 40, np.uint8),
    )
    cover = np.zeros((2, 12, 12), np.float32)
    cover[0, 4:8, 4:8], cover[1, 2:5, 2:10] = 1.0, 1.0
    theirs[cover[1] > 0] = 255  # the other one's object, which is not to show
    found = pasted(np.stack([ours, theirs]), cover, np.array([1, 0]))
    for n, (front, back) in enumerate([(200, 40), (255, 200)]):
        assert (found[n][cover[n] > 0] == front).all()
        assert (found[n][cover[n] == 0] == back).all()


def test_partners_are_others_of_the_same_class_or_of_another() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    for seed in range(5):
        same, other = (partners(labels, same=which, seed=seed) for which in (True, False))
        assert (same[:5] != np.arange(5)).all() and (labels[same[:5]] == labels[:5]).all()
        assert same[5] == -1  # alone in its class
        assert (labels[other] != labels).all()
    drawn = [partners(labels, same=False, seed=seed)[0] for seed in range(40)]
    assert set(drawn) == {3, 4, 5}


class Means(nn.Module):
    """An encoder whose features are the mean red inside and outside of the middle of a view."""

    out_channels = 2

    def forward(self, x: Tensor) -> Tensor:
        inner = x[:, 0, 16:48, 16:48].mean((1, 2))
        whole = x[:, 0].mean((1, 2))
        return torch.stack([inner, (whole - inner / 4) / 0.75], 1)[..., None, None]


def half_and_half(index: int) -> Item:
    """Return a picture of 64 px whose object and background both tell its class by their grey."""
    label = index % 2
    picture = np.full((64, 64, 3), 60 + 120 * label, np.uint8)
    mask = np.zeros((64, 64), np.bool_)
    mask[16:48, 16:48] = True
    return picture, mask, label


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_beton(folder / "val.beton", half_and_half, count=12)
    return folder


@pytest.mark.parametrize(
    ("looks_at", "expected"),
    [
        ("object", {"fg": 100.0, "bg": 50.0, "same": 100.0, "other": 100.0, "gap": 0.0}),
        ("background", {"fg": 50.0, "bg": 100.0, "same": 100.0, "other": 0.0, "gap": 100.0}),
    ],
)
def test_a_probe_tells_what_a_head_looks_at(
    looks_at: str, expected: dict[str, float], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate(
        {
            "data": {"views": [{"size_px": 64}] * 2, "mean": [0.5] * 3, "std": [0.25] * 3},
            "model": {"arch": "resnet18", "width": 0.125},
        }
    )
    plain = untrained(config, seed=0)
    # The whole picture, so that the mask's edges are those of pixels.
    seen = {"size_px": 64, "crop": 1.0, "mean": plain.mean, "std": plain.std}
    monkeypatch.setattr(evidence_probes, "preprocessing", lambda *_, **__: seen)
    encoder = replace(plain, backbone=cast(Any, Means()))
    place = ["object", "background"].index(looks_at)
    weight = torch.zeros(2, 2)
    # A blanked part is a little above 0 (127.5 rounds up): it counts as class 1, half of all.
    weight[1, place] = 1.0
    found = probe(encoder, Head(weight, torch.zeros(2)), data, classes=2)
    assert found == expected
