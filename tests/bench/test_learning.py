"""Learning beside lightly's BYOL: the views it gets, and how both are put side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import learning
from harl_fast.config import RunConfig, ViewConfig, load_config
from harl_fast.errors import ConfigError
from harl_fast.model.loss import matched_distance

STILL = {
    "size_px": 32,
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
    **dict.fromkeys(("flip_p", "jitter_p", "gray_p", "blur_p"), 0.0),
}
"""A view without chance."""


def picture(side: int = 32) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(noise)


def test_views_are_those_of_the_configuration() -> None:
    config = RunConfig()
    found = learning.transform(ViewConfig.model_validate(STILL), config)(picture())
    plain = torch.from_numpy(np.array(picture())).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (config.data.mean, config.data.std))
    torch.testing.assert_close(found, (plain - mean) / std)
    turned = learning.transform(ViewConfig.model_validate({**STILL, "flip_p": 1.0}), config)
    torch.testing.assert_close(turned(picture()), found.flip(2))
    inverted = learning.transform(ViewConfig.model_validate({**STILL, "solarize_p": 1.0}), config)
    bright = torch.where(plain >= 128 / 255, 1 - plain, plain)
    torch.testing.assert_close(inverted(picture()), (bright - mean) / std)


@pytest.mark.parametrize("more", [{"crop": "foreground>=0.2"}, {"background_p": 0.5}])
def test_what_torchvision_lacks_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="torchvision has no"):
        learning.transform(ViewConfig.model_validate({**STILL, **more}), RunConfig())


def test_the_settings_leave_nothing_that_lightly_lacks() -> None:
    config = load_config("small", overrides=learning.EQUAL)
    assert config.loss.type == "byol" and not (config.loss.spread or config.loss.contrast)
    assert config.optim.name == "sgd" and config.model.projector_layers == 2
    for view in config.data.views:
        assert learning.transform(view, config)


def test_both_are_put_side_by_side_by_seed() -> None:
    found = {
        "ours": [{"accuracy": {"linear": v}, "seconds": 60.0} for v in (31.0, 32.0, 33.0)],
        "lightly": [{"accuracy": {"linear": v}, "seconds": 120.0} for v in (30.0, 31.5, 31.5)],
    }
    ours, theirs, gap = learning.table(found)
    assert ours.startswith("ours, 3 seeds: linear 32.0;") and "linear 31.0" in theirs
    # Differences 1, 0.5 and 1.5: mean 1, half width 4.303 x 0.5 / sqrt(3).
    assert gap == "ours - lightly, linear: +1.0 (-0.2 to +2.2)"


def test_four_times_lightly_s_mean_is_our_sum() -> None:
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    p0, p1, z0, z1 = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    theirs = 2 * loss(z0, p1) + 2 * loss(z1, p0) + 4
    every = torch.ones(2, len(p0), dtype=torch.bool)
    ours = matched_distance(torch.stack([p0, p1]), torch.stack([z0, z1]), usable=every)
    torch.testing.assert_close(theirs, ours)


def test_a_few_steps_of_lightly_s_byol_move_the_backbone(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(32):
            picture(40).save(tmp_path / kind / f"{number}.png")
    size = ["data.views.0.size_px=32", "data.views.1.size_px=32", "model.width=0.125"]
    words = [*learning.EQUAL, *size, "epochs=2", "optim.warmup_epochs=0"]
    config = load_config("small", overrides=words)
    before = learning.untrained(config, seed=0).backbone.state_dict()
    epochs = list(learning.train_lightly(config, tmp_path, half=False))
    assert [images for images, _ in epochs] == [64, 128]
    after = epochs[-1][1].state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)
    assert all(torch.isfinite(each).all() for each in after.values())


def test_a_curve_is_the_mean_of_its_seeds_and_says_when_the_other_is_reached() -> None:
    curves = {"ours": [(10.0, 40.0), (20.0, 44.0)], "lightly": [(10.0, 30.0), (20.0, 34.0)]}
    found = {
        name: [
            {"accuracy": {"linear": 1.0}, "seconds": 1.0, "curve": [[0, a], [6400, b]]}
            for a, b in each
        ]
        for name, each in curves.items()
    }
    assert learning.mean_curve(found["ours"]) == [(0, 15.0, 10.0, 20.0), (6400, 42.0, 40.0, 44.0)]
    *_, ours, theirs, reached = learning.table(found)
    assert ours == "ours, k-NN by images seen: 0 15.0, 6,400 42.0" and "6,400 32.0" in theirs
    assert reached == "lightly's 32.0 after 6,400 images: ours has it after 6,400"
    assert learning.draw(found).startswith(b"\x89PNG")
    other = learning.table({"ours": found["lightly"], "lightly": found["ours"]})
    assert other[-1] == "lightly's 42.0 after 6,400 images: ours has it not after 6,400"
