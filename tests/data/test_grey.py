"""Views of one channel: their colours on both paths against torchvision, and their luma."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms.v2 import functional

from harl_fast.config import ViewConfig
from harl_fast.data.views import color_cpu, resize
from harl_fast.data.views import color_device as photometric
from harl_fast.errors import ConfigError
from tests.data.test_colour import BLUR, ROUNDING, T_PRIME, T, parameters

MEAN, STD = (0.449,), (0.226,)
STEPS = (functional.adjust_brightness, functional.adjust_contrast)


def picture(side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)


def run(levels: npt.NDArray[np.uint8], params: npt.NDArray[np.float64]) -> torch.Tensor:
    """Return (1, S, S) float32 in [0, 1] from the kernel, whose scratch starts full of NaN."""
    side = len(levels)
    row = color_cpu.policy_table([T.model_copy(update={"size_px": side})], MEAN, STD)[0]
    out = np.full(side * side, np.nan, np.float32)
    scratch = np.full(color_cpu.scratch_size(side), np.nan, np.float32)
    color_cpu.colour_grey(levels.reshape(-1), params, row, scratch, out)
    return torch.from_numpy(out.reshape(1, side, side)) * STD[0] + MEAN[0]


@pytest.mark.parametrize("side", [8, 33, 96, 224])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_jitter_and_solarize_are_torchvisions_on_one_channel(
    side: int, order: tuple[int, ...]
) -> None:
    levels, factors = picture(side), (1.3, 0.7, 1.2, 0.09)
    got = run(levels, parameters(order=order, factors=factors, grey=True, solarize=True))
    x = torch.from_numpy(levels)[None].float() / 255
    for number in order:
        if number < 2:
            x = STEPS[number](x, factors[number])
    torch.testing.assert_close(got, functional.solarize(x, 0.5), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("side", [8, 33, 96, 224])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.9])
def test_blur_is_torchvisions_on_one_channel(side: int, sigma: float) -> None:
    levels = picture(side)
    x = torch.from_numpy(levels)[None].float() / 255
    radius = color_cpu.blur_radius(T.model_copy(update={"size_px": side}))
    expected = functional.gaussian_blur(x, [2 * radius + 1] * 2, [sigma] * 2)
    got = run(levels, parameters(sigma=sigma))
    torch.testing.assert_close(got, expected, rtol=0, atol=BLUR)


def test_the_device_colours_one_channel_as_the_loader_does() -> None:
    side, ids = 48, np.arange(40)
    levels = np.stack([np.roll(picture(side), int(shift)) for shift in ids])[..., None]
    for view, policy in enumerate((T, T_PRIME)):
        sized = policy.model_copy(update={"size_px": side})
        device = photometric.Photometric([sized] * 2, mean=MEAN, std=STD, seed=5)
        expected = device(torch.from_numpy(levels), view=view, ids=ids, epoch=3)
        assert expected.shape == (40, 1, side, side)
        row = color_cpu.policy_table([sized], MEAN, STD)[0]
        drawn = color_cpu.draw_batch(row, ids, seed=5, epoch=3, view=view)
        for sample in ids:
            got = run(levels[sample, ..., 0], drawn[sample])
            want = expected[sample] * STD[0] + MEAN[0]
            torch.testing.assert_close(got, want, rtol=0, atol=BLUR)


def test_greys_of_three_channels_keep_their_grey_on_one() -> None:
    """The same draws on R = G = B give the same picture but for what acts on colour alone."""
    x = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    three, factor = x.expand(-1, 3, -1, -1), torch.linspace(0.6, 1.4, 6)
    for operation in (photometric.brightness, photometric.contrast, photometric.saturation):
        want = operation(three.contiguous(), factor)[:, :1]
        torch.testing.assert_close(operation(x, factor), want, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(photometric.hue(x, factor), x)
    assert photometric.luminance(x) is x


def test_luma_is_bt601_rounded_once() -> None:
    rng = np.random.default_rng(0)
    red, green, blue = rng.integers(0, 255 * 256 + 1, (3, 100_000), dtype=np.uint16)
    red[:2] = green[:2] = blue[:2] = 0, 255 * 256
    out = np.empty(len(red), np.uint8)
    resize.rgb_to_luma(red, green, blue, out)
    exact = (0.299 * red + 0.587 * green + 0.114 * blue) / 256
    assert np.abs(out - exact).max() <= 0.5 + 0.02  # coefficients of 16 bits, a product cut off
    assert out[:2].tolist() == [0, 255]


def test_colours_need_as_many_values_as_the_views_have_channels() -> None:
    policy = ViewConfig(size_px=32)
    colouring = photometric.Colouring((policy,), mean=MEAN, std=STD)
    with pytest.raises(ConfigError, match="1 values of mean and 1 of std, the views 3 channels"):
        colouring.check([], channels=3)
