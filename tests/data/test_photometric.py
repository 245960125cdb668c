"""Each colour operation against torchvision, the drawn rates, and independence of the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from harl_fast.config import DataConfig, ViewConfig
from harl_fast.data.views import color_device as photometric
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError

MEAN, STD = DataConfig().mean, DataConfig().std


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.rand(12, 3, 40, 40)
    x[0] = 0.25  # grey: no hue
    x[1, 0] = 1.0  # saturated red
    return x


@pytest.mark.parametrize(
    ("ours", "theirs", "factors", "tolerance"),
    [
        # torchvision's grey weights are 0.2989 ... here and 0.299 ... there.
        ("brightness", functional.adjust_brightness, (0.6, 1.4), 1e-6),
        ("contrast", functional.adjust_contrast, (0.6, 1.4), 1e-4),
        ("saturation", functional.adjust_saturation, (0.8, 1.2), 1e-4),
        ("hue", functional.adjust_hue, (-0.5, 0.5), 1e-5),
    ],
)
def test_jitter_operations_are_torchvisions(pictures, ours, theirs, factors, tolerance) -> None:
    factor = torch.linspace(*factors, len(pictures))
    got = getattr(photometric, ours)(pictures, factor)
    expected = torch.stack([theirs(x, float(f)) for x, f in zip(pictures, factor, strict=True)])
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_blur_is_torchvisions_gaussian_with_mirrored_borders(pictures) -> None:
    sigma = torch.linspace(0.1, 2.0, len(pictures))
    got = photometric.blur(pictures, sigma, radius=8)
    expected = torch.stack(
        [
            functional.gaussian_blur(x, [17, 17], [float(s)] * 2)
            for x, s in zip(pictures, sigma, strict=True)
        ]
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_solarize_and_grey_are_torchvisions(pictures) -> None:
    torch.testing.assert_close(
        photometric.solarize(pictures), functional.solarize(pictures, threshold=0.5)
    )
    grey = photometric.luminance(pictures).expand_as(pictures)
    torch.testing.assert_close(grey, functional.to_grayscale(pictures, 3), rtol=0, atol=1e-3)


def test_draws_have_byols_rates_and_ranges() -> None:
    policy = DataConfig().views[1]
    drawn = photometric.draw(policy, np.arange(20_000), seed=0, epoch=0, view=1)
    for share, expected in [
        (drawn.jitter.mean(), 0.8),
        (drawn.grey.mean(), 0.2),
        (drawn.blur.mean(), 0.1),
        (drawn.solarize.mean(), 0.2),
    ]:
        assert abs(share - expected) < 5 * (0.25 / 20_000) ** 0.5
    low, high = drawn.factors.min(0), drawn.factors.max(0)
    np.testing.assert_allclose(low, [0.6, 0.6, 0.8, -0.1], atol=1e-3)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.2, 0.1], atol=1e-3)
    assert 0.1 <= drawn.sigma.min() < 0.11 and 1.99 < drawn.sigma.max() <= 2.0
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 0.8 * 20_000 / 24


def test_blur_widths_follow_the_views_size() -> None:
    small = photometric.draw(ViewConfig(size_px=56), np.arange(999), seed=0, epoch=0, view=0)
    full = photometric.draw(ViewConfig(), np.arange(999), seed=0, epoch=0, view=0)
    np.testing.assert_allclose(small.sigma * 4, full.sigma)


def test_a_sample_looks_the_same_in_any_batch() -> None:
    colour = photometric.Photometric(
        [ViewConfig(size_px=32), ViewConfig(size_px=32)], mean=MEAN, std=STD, seed=7
    )
    images = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8)
    ids = np.arange(100, 120)
    together = colour(images, view=1, ids=ids, epoch=3)
    alone = torch.cat(
        [colour(images[i : i + 1], view=1, ids=ids[i : i + 1], epoch=3) for i in range(20)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together, colour(images, view=1, ids=ids, epoch=4))
    assert not torch.allclose(together, colour(images, view=0, ids=ids, epoch=3))


def test_without_operations_it_is_the_plain_normalisation() -> None:
    still = ViewConfig(size_px=16, jitter_p=0, gray_p=0, blur_p=0, solarize_p=0)
    colour = photometric.Photometric([still], mean=MEAN, std=STD, seed=0)
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    got = colour(images, view=0, ids=np.arange(4), epoch=0)
    x = images.permute(0, 3, 1, 2).double() / 255
    expected = functional.normalize(x, list(MEAN), list(STD)).float()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(colour.plain(images), got)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, r"mean: \[123.7, .* divide by 255"),
        ({"std": (58.4, 57.1, 57.4)}, r"std: \[58.4, .* divide by 255"),
        ({"std": (float("nan"), 1.0, 1.0)}, "std.0: .* finite"),
        ({"std": (0.5, 0.0, 0.5)}, "std.1: "),
        ({"mean": (-0.5, 0.5, 0.5)}, "mean.0: "),
    ],
)
def test_colours_that_a_configuration_refuses_are_refused(wrong: dict, words: str) -> None:
    given = {"mean": MEAN, "std": STD, **wrong}
    with pytest.raises(ConfigError, match=words):
        photometric.Colouring((ViewConfig(),), **given)
    with pytest.raises(ConfigError, match=words):
        photometric.Photometric([ViewConfig()], **given, seed=0)


def test_a_batch_of_many_views_is_coloured_view_by_view() -> None:
    sizes, ids = (40, 40, 24, 24), np.arange(5)
    policies = [ViewConfig(size_px=size, blur_p=0.5) for size in sizes]
    colour = photometric.Photometric(policies, mean=MEAN, std=STD, seed=3)
    views = [torch.randint(0, 256, (5, size, size, 3), dtype=torch.uint8) for size in sizes]
    found = colour.batch(views, ids=ids, epoch=2)
    for view, (ours, pixels) in enumerate(zip(found, views, strict=True)):
        assert torch.equal(ours, colour(pixels, view=view, ids=ids, epoch=2))
    same = colour.batch([views[2]] * 4, ids=ids, epoch=2)
    assert not torch.equal(same[2], same[3])  # each view has draws of its own


@pytest.mark.parametrize("policies", [ViewConfig(), [ViewGeometry(size_px=16, cells=2)], None])
def test_colours_are_of_a_list_of_view_configurations(policies: Any) -> None:
    for colours in (photometric.Colouring, photometric.Photometric):
        seed = {"seed": 0} if colours is photometric.Photometric else {}
        with pytest.raises(ConfigError, match=r"^colours: .*; give a list of one ViewConfig per"):
            colours(policies, mean=MEAN, std=STD, **seed)
