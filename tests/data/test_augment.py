"""Colour operations from outside the package: drawn by their own numbers, alike on both paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harl_fast import rng
from harl_fast.config import ViewConfig
from harl_fast.data.views.augment import AUGMENTATIONS, Augmentation
from harl_fast.data.views.color_cpu import PARAMS
from harl_fast.data.views.color_device import Colouring, Photometric
from harl_fast.errors import ConfigError
from tests.betons import plain_item, write_beton
from tests.data.support import COUNT, VIEWS, loader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}


def shade(x: Tensor, numbers: Tensor) -> Tensor:
    """Darken each picture by its own factor from 0.5 to 1."""
    return x * (0.5 + 0.5 * numbers[:, 0])[:, None, None, None]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUGMENTATIONS, "shade", Augmentation(shade, first_draw=PARAMS, draws=1))


def policies(**changes) -> list[ViewConfig]:
    return [ViewConfig(size_px=view.size_px, **changes) for view in VIEWS]


def photometric(**changes) -> Photometric:
    return Photometric(policies(**changes), mean=MEAN, std=STD, seed=3)


def test_it_is_applied_by_its_own_draws_and_changes_no_other() -> None:
    ids, side = np.arange(400), VIEWS[1].size_px
    images = torch.full((len(ids), side, side, 3), 200, dtype=torch.uint8)
    shaded, without = photometric(augment={"shade": 0.3}, **PLAIN), photometric(**PLAIN)
    got, before = (p(images, view=1, ids=ids, epoch=2) for p in (shaded, without))
    u = rng.uniforms(3, 2, ids, view=1, purpose=rng.PHOTOMETRIC, count=PARAMS + 2)[:, PARAMS:]
    factor = torch.from_numpy(np.where(u[:, 0] < 0.3, 0.5 + 0.5 * u[:, 1], 1.0)).float()
    expected = shaded.normalize(
        (images.float() / 255 * factor[:, None, None, None]).permute(0, 3, 1, 2)
    )
    torch.testing.assert_close(got, expected)
    untouched = torch.from_numpy(u[:, 0] >= 0.3)
    assert 0.6 < untouched.float().mean() < 0.8
    assert torch.equal(got[untouched], before[untouched])


def test_the_loader_and_the_device_agree(tmp_path: Path) -> None:
    path = write_beton(tmp_path / "train.beton", plain_item, count=COUNT)
    policy = {"augment": {"shade": 0.5}, **PLAIN}
    colour = Colouring(tuple(policies(**policy)), MEAN, STD)
    device = photometric(**policy)
    for plain, coloured in zip(loader(path), loader(path, colour=colour), strict=True):
        for view in range(len(VIEWS)):
            expected = device(plain.views[view], view=view, ids=plain.ids, epoch=0)
            torch.testing.assert_close(coloured.views[view], expected, rtol=0, atol=1e-5)


def test_unknown_names_and_shared_draws_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'shad'; known are shade"):
        photometric(augment={"shad": 1.0})
    monkeypatch.setitem(AUGMENTATIONS, "second", Augmentation(shade, PARAMS + 1))
    with pytest.raises(ConfigError, match=f"'second' and shade share draw {PARAMS + 1}"):
        photometric(augment={"shade": 0.5, "second": 0.5})
    monkeypatch.setitem(AUGMENTATIONS, "early", Augmentation(shade, PARAMS - 1))
    with pytest.raises(ConfigError, match=f"share draw {PARAMS - 1}: .* from {PARAMS} on"):
        photometric(augment={"early": 0.5})
