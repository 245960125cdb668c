"""The compiled colour kernel against torchvision and the torch path, and the rule of the draws."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms.v2 import functional

from harl_fast import rng
from harl_fast.config import DataConfig, ViewConfig
from harl_fast.data.views import color_cpu as colour
from harl_fast.data.views import color_device as photometric

MEAN, STD = DataConfig().mean, DataConfig().std
T, T_PRIME = DataConfig().views
ROUNDING = 1e-5
"""Pixels in [0, 1] after a dozen float32 operations on values up to 255."""
BLUR = 1e-3
"""Twice a cut-off mass of 2.5e-4, and 16-bit sums of up to 9 terms on both axes: 2 * 10 / 65280."""
GREY_WEIGHTS = 1e-4
"""torchvision's grey weights are 0.2989, 0.587, 0.114."""


def picture(side: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return (S, S, 3) uint8 noise, the hardest case for a blur, with grey and pure colours."""
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image[0], image[1] = 77, (255, 0, 0)
    image[2:4, : side // 2] = (0, 255, 255)
    return image


def parameters(
    *,
    order: tuple[int, ...] | None = None,
    factors: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0),
    grey: bool = False,
    sigma: float | None = None,
    solarize: bool = False,
) -> npt.NDArray[np.float64]:
    """Return a parameter vector; without an order there is no jitter, without sigma no blur."""
    params = np.zeros(colour.PARAMS)
    params[colour.JITTER] = order is not None
    params[colour.FACTORS : colour.FACTORS + 4] = factors
    params[colour.ORDER : colour.ORDER + 4] = order or (0, 1, 2, 3)
    params[colour.GREY], params[colour.SOLARIZE] = grey, solarize
    params[colour.BLUR], params[colour.SIGMA] = sigma is not None, sigma or 1.0
    return params


def run(
    image: npt.NDArray[np.uint8], params: npt.NDArray[np.float64], policy: ViewConfig = T
) -> torch.Tensor:
    """Return (3, S, S) float32 in [0, 1] from the kernel, whose scratch starts full of NaN."""
    side = image.shape[0]
    row = colour.policy_table([policy.model_copy(update={"size_px": side})], MEAN, STD)[0]
    out = np.full((side, side, 3), np.nan, np.float32)
    scratch = np.full(colour.scratch_size(side), np.nan, np.float32)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    colour.colour_view(planes, params, row, scratch, out)
    pixels = out * np.array(STD, np.float32) + np.array(MEAN, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def unit(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255.0


def torchvision_jitter(x: torch.Tensor, order, factors) -> torch.Tensor:
    operations = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for number in order:
        x = operations[number](x, factors[number])
    return x


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_jitter_is_torchvisions_in_every_order(order) -> None:
    image = picture(33)
    for factors in ((1.4, 0.6, 1.2, 0.1), (0.6, 1.4, 0.8, -0.1), (1.2, 1.3, 0.0, 0.5)):
        expected = torchvision_jitter(unit(image), order, factors)
        got = run(image, parameters(order=order, factors=factors))
        # The other grey weights may move a hue where colours nearly vanish.
        torch.testing.assert_close(got, expected, rtol=0, atol=5 * GREY_WEIGHTS)


@pytest.mark.parametrize(
    ("number", "factor"),
    [(0, 0.6), (0, 1.4), (1, 0.6), (1, 1.4), (2, 0.8), (2, 1.2), (3, 0.31), (3, -0.5), (3, 0.5)],
)
def test_each_jitter_operation_alone(number: int, factor: float) -> None:
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[number] = factor
    expected = torchvision_jitter(unit(picture(64)), (number,), factors)
    got = run(picture(64), parameters(order=(0, 1, 2, 3), factors=tuple(factors)))
    tolerance = ROUNDING if number in (0, 3) else GREY_WEIGHTS
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("side", [8, 17, 64, 224])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 7.5])
def test_blur_is_torchvisions_gaussian(side: int, sigma: float) -> None:
    policy = ViewConfig(size_px=side, blur_sigma=(sigma, sigma * 224 / side))
    radius = colour.blur_radius(policy)  # on small views it is the whole view
    expected = functional.gaussian_blur(unit(picture(side)), [2 * radius + 1] * 2, [sigma] * 2)
    got = run(picture(side), parameters(sigma=sigma), policy)
    torch.testing.assert_close(got, expected, rtol=0, atol=BLUR)
    assert (got - expected).mean().abs() < 2e-5  # no shift of the brightness


def test_grey_and_solarize_are_torchvisions() -> None:
    image = picture(40)
    grey = run(image, parameters(grey=True))
    torch.testing.assert_close(
        grey, functional.to_grayscale(unit(image), 3), rtol=0, atol=4 * GREY_WEIGHTS
    )
    torch.testing.assert_close(
        run(image, parameters(solarize=True)),
        functional.solarize(unit(image), threshold=0.5),
        rtol=0,
        atol=ROUNDING,
    )


@pytest.mark.parametrize("side", [8, 17, 64, 224])
@pytest.mark.parametrize("policy", [T, T_PRIME, ViewConfig(gray_p=0.5, blur_p=0.5, solarize_p=0.5)])
def test_drawn_policies_look_as_on_the_torch_path(side: int, policy: ViewConfig) -> None:
    policy = policy.model_copy(update={"size_px": side})
    ids = np.arange(40 if side < 200 else 8)
    drawn = photometric.draw(policy, ids, seed=5, epoch=2, view=1)
    row = colour.policy_table([policy], MEAN, STD)[0]
    params = colour.draw_batch(row, ids, seed=5, epoch=2, view=1)
    torch_path = photometric.Photometric([policy], mean=MEAN, std=STD, seed=5)
    images = np.stack([picture(side, seed=int(i)) for i in ids])
    expected = torch_path.colour(torch.from_numpy(images), drawn, policy=policy)
    got = torch.stack([run(image, p, policy) for image, p in zip(images, params, strict=True)])
    blurred = torch.from_numpy(drawn.blur)
    torch.testing.assert_close(got[blurred], expected[blurred], rtol=0, atol=BLUR)
    torch.testing.assert_close(got[~blurred], expected[~blurred], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_a_flat_grey_picture_stays_flat(level: int) -> None:
    image = np.full((32, 32, 3), level, np.uint8)
    params = parameters(
        order=(3, 1, 0, 2), factors=(0.8, 1.3, 1.2, 0.1), sigma=2.0, grey=True, solarize=True
    )
    got = run(image, params, ViewConfig(blur_sigma=(2.0, 2.0 * 7)))
    value = min(255.0, 0.8 * level) / 255.0
    torch.testing.assert_close(
        got, torch.full((3, 32, 32), min(value, 1.0 - value)), rtol=0, atol=2e-4
    )


def test_the_same_input_gives_the_same_bits_whatever_lay_in_the_scratch() -> None:
    params = parameters(order=(2, 3, 1, 0), factors=(1.3, 0.7, 1.1, 0.05), sigma=1.5, solarize=True)
    row = colour.policy_table([T], MEAN, STD)[0]
    planes = np.ascontiguousarray(picture(224).transpose(2, 0, 1))
    outs = []
    for fill, lead in ((np.nan, 0), (0.0, 3), (1e30, 17)):  # and wherever it begins
        out = np.full((224, 224, 3), fill, np.float32)
        scratch = np.full(lead + colour.scratch_size(224), fill, np.float32)[lead:]
        colour.colour_view(planes, params, row, scratch, out)
        outs.append(out)
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


@pytest.mark.parametrize("side", [8, 33, 96])
def test_nothing_is_written_beyond_scratch_and_output(side: int) -> None:
    policy = ViewConfig(size_px=side, blur_sigma=(50.0, 100.0))  # reaches over the whole view
    row = colour.policy_table([policy], MEAN, STD)[0]
    used, guard = colour.scratch_size(side), 4096
    scratch, out = np.zeros(used + guard, np.float32), np.zeros((side + 9, side, 3), np.float32)
    scratch[used:], out[side:] = 7.0, 7.0
    params = parameters(order=(1, 0, 2, 3), sigma=float(side))
    planes = np.ascontiguousarray(picture(side).transpose(2, 0, 1))
    for start in range(16):  # every place within a cache line
        colour.colour_view(planes, params, row, scratch[start : start + used], out[:side])
        assert (scratch[start + used :] == 7.0).all() and (out[side:] == 7.0).all()


def test_parameters_are_the_draws_by_the_documented_rule() -> None:
    policy, ids = T_PRIME.model_copy(update={"size_px": 96}), np.arange(3000)
    u = rng.uniforms(11, 4, ids, view=1, purpose=rng.PHOTOMETRIC, count=13)
    row = colour.policy_table([policy], MEAN, STD)[0]
    params = colour.draw_batch(row, ids, seed=11, epoch=4, view=1)
    spread = np.array([policy.brightness, policy.contrast, policy.saturation, policy.hue])
    np.testing.assert_array_equal(params[:, 0], u[:, 0] < policy.jitter_p)
    expected = np.array([1.0, 1.0, 1.0, 0.0]) + spread * (2.0 * u[:, 1:5] - 1.0)
    np.testing.assert_allclose(params[:, 1:5], expected, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(params[:, 5:9], np.argsort(u[:, 5:9], axis=1))
    np.testing.assert_array_equal(params[:, 9], u[:, 9] < policy.gray_p)
    np.testing.assert_array_equal(params[:, 10], u[:, 10] < policy.blur_p)
    np.testing.assert_allclose(params[:, 11], (0.1 + 1.9 * u[:, 11]) * 96 / 224, rtol=1e-15)
    np.testing.assert_array_equal(params[:, 12], u[:, 12] < policy.solarize_p)


def test_one_sample_is_drawn_as_in_a_batch() -> None:
    row = colour.policy_table([T, T_PRIME], MEAN, STD)[1]
    together = colour.draw_batch(row, np.arange(50, 60), seed=1, epoch=0, view=1)
    for sample, expected in zip(range(50, 60), together, strict=True):
        out = np.empty(colour.PARAMS)
        key = np.uint64(rng.stream(1, 0, sample, 1, rng.PHOTOMETRIC))
        colour.draw_colour(key, row, out)
        np.testing.assert_array_equal(out, expected)
