"""How a view is coloured: BYOL's jitter, grey, blur, solarize, normalisation, batched on device.

Factors and blends are torchvision's (BYOL, appendix B). The parameters come from `color_cpu` on
the host and go to the device in one copy per batch; no device is ever waited for. On CUDA the
kernels of `color_triton` do the work. Where there are none, and as their reference, the same is
done here operation by operation: pixels are planar (B, 3, H, W) float32 in [0, 1], which is 2 to 5
times faster than interleaved on CPU, and the result is channels-last. On the CPU the loader may do
it with `color_cpu.colour_view` instead, several times faster.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harl_fast.config import DataConfig, RunConfig, ViewConfig
from harl_fast.data.views.augment import (
    apply_to_rows,
    augment,
    check_augmentations,
    rows_of,
    values_of,
)
from harl_fast.data.views.color_cpu import (
    BLUR,
    FACTORS,
    GREY,
    JITTER,
    ORDER,
    SIGMA,
    SOLARIZE,
    blur_radius,
    draw_batch,
    policy_table,
)
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError, one_line, shown
from harl_fast.section import validated

_log = logging.getLogger(__name__)
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Draws:
    """One view's parameters for B samples, float64 or bool NumPy arrays of B rows."""

    jitter: npt.NDArray[np.bool_]
    factors: npt.NDArray[np.float64]
    """(B, 4): brightness, contrast and saturation factors about 1, hue shift in turns."""
    order: npt.NDArray[np.int64]
    """(B, 4): which of the four comes first, second, third, last."""
    grey: npt.NDArray[np.bool_]
    blur: npt.NDArray[np.bool_]
    sigma: npt.NDArray[np.float64]
    """(B,): standard deviation in pixels of this view."""
    solarize: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, params: npt.NDArray[np.float64]) -> Draws:
        """Return what the (B, PARAMS) rows of `color_cpu.draw_batch` say."""
        return cls(
            jitter=params[:, JITTER] != 0,
            factors=params[:, FACTORS : FACTORS + 4],
            order=params[:, ORDER : ORDER + 4].astype(np.int64),
            grey=params[:, GREY] != 0,
            blur=params[:, BLUR] != 0,
            sigma=params[:, SIGMA],
            solarize=params[:, SOLARIZE] != 0,
        )


def draw_params(
    policy: ViewConfig, ids: npt.ArrayLike, *, seed: int, epoch: int, view: int
) -> npt.NDArray[np.float64]:
    """Return one view's (B, PARAMS) parameters for (B,) sample ids, see `color_cpu.draw_batch`."""
    row = policy_table([policy], (0.0,) * 3, (1.0,) * 3)[0]  # drawing minds neither mean nor std
    return draw_batch(row, ids, seed=seed, epoch=epoch, view=view)


def draw(policy: ViewConfig, ids: npt.ArrayLike, *, seed: int, epoch: int, view: int) -> Draws:
    """Return the parameters of one view for (B,) sample ids; a function of its arguments alone."""
    return Draws.of(draw_params(policy, ids, seed=seed, epoch=epoch, view=view))


@dataclass(frozen=True)
class Colouring:
    """What a loader needs to colour its views on the CPU. Raises ConfigError."""

    policies: tuple[ViewConfig, ...]
    """One per view."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Normalisation of [0, 1] pixels: three values, RGB, or one for views of one channel."""

    def __post_init__(self) -> None:
        _check_colours(self.policies, self.mean, self.std)

    def table(self) -> npt.NDArray[Any]:
        """Return the (V,) records of `color_cpu.policy_table`."""
        return policy_table(self.policies, self.mean, self.std)

    def check(self, views: Sequence[ViewGeometry], *, channels: int) -> None:
        """Raise ConfigError unless there is one policy per view, of its size, and C values."""
        if not len(self.mean) == len(self.std) == channels:
            raise ConfigError(
                f"colours have {len(self.mean)} values of mean and {len(self.std)} of std, the "
                f"views {channels} channels: give as many values as channels"
            )
        sizes, wanted = [p.size_px for p in self.policies], [v.size_px for v in views]
        if sizes != wanted:
            raise ConfigError(f"colours are for views of {sizes} px, the views have {wanted} px")
        check_augmentations(self.policies)

    def augment(
        self,
        views: Sequence[npt.NDArray[np.float32]],
        ids: npt.NDArray[np.int64],
        *,
        seed: int,
        epoch: int,
    ) -> None:
        """Apply what `color_cpu` does not know to its (B, S, S, C) normalised views, in place."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        for view, policy in enumerate(self.policies):
            if policy.augment:
                pixels = torch.from_numpy(views[view]).permute(0, 3, 1, 2)
                x = (pixels * std + mean).clamp_(0.0, 1.0).contiguous()
                augment(x, policy, ids, seed=seed, epoch=epoch, view=view)
                pixels.copy_((x - mean) / std)


def _check_colours(
    policies: Sequence[ViewConfig], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raise ConfigError for what a configuration refuses, such as the levels of bytes."""
    several = isinstance(policies, Sequence)
    if not (several and all(isinstance(each, ViewConfig) for each in policies)):
        raise ConfigError(f"colours: {shown(policies)}; give a list of one ViewConfig per view")
    validated(DataConfig, {"mean": mean, "std": std}, where="colours")


def luminance(x: Tensor) -> Tensor:
    """Return (B, 1, H, W) luminance of (B, 3, H, W) RGB (ITU-R BT.601), or of one channel."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    grey: Tensor = red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]
    return grey


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale (B, 3, H, W) by (B,) factors and clamp to [0, 1]."""
    return (x * factor[:, None, None, None]).clamp_(0.0, 1.0)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale each picture about its own mean luminance and clamp to [0, 1]."""
    middle = luminance(x).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(middle, x, factor[:, None, None, None]).clamp_(0.0, 1.0)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale each pixel about its luminance and clamp to [0, 1]."""
    return torch.lerp(luminance(x), x, factor[:, None, None, None]).clamp_(0.0, 1.0)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn each pixel's hue by (B,) shifts, in turns of the colour circle, through HSV."""
    if x.shape[1] == 1:  # greys have none
        return x
    value, chroma, turn = _to_hsv(x)
    turn = torch.remainder(turn + shift[:, None, None], 1.0) * 6.0
    # Each channel is the value less chroma times a trapezoid of the hue (HSV, channel form).
    phase = torch.stack([turn + start for start in (5.0, 3.0, 1.0)], dim=1).remainder_(6.0)
    dip = torch.minimum(phase, 4.0 - phase).clamp_(0.0, 1.0)
    return value[:, None] - chroma[:, None] * dip


def _to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = x.amax(1)
    chroma = value - x.amin(1)
    red, green, blue = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    return value, chroma, torch.remainder(sector / 6.0, 1.0)


def blur_matrix(sigma: Tensor, *, size_px: int, radius: int) -> Tensor:
    """Return (B, S, S): row i holds a Gaussian about i, mirrored at the borders; rows sum to 1."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    places = (torch.arange(size_px, device=sigma.device)[:, None] + offsets).abs()
    places = size_px - 1 - (size_px - 1 - places).abs()
    matrix = sigma.new_zeros(len(sigma), size_px, size_px)
    # One diagonal at a time: two taps of a row may meet in one mirrored place.
    rows = torch.arange(size_px, device=sigma.device)
    for tap in range(2 * radius + 1):
        matrix[:, rows, places[:, tap]] += weights[:, tap, None]
    return matrix


def blur(x: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur (B, 3, S, S) with each picture's own sigma: two batched products with `blur_matrix`.

    Measured on CPU against depthwise convolution: 1.7 to 4 times faster.
    """
    matrix = blur_matrix(sigma, size_px=x.shape[-1], radius=radius)
    across = torch.bmm(x.flatten(1, 2), matrix.transpose(1, 2)).view_as(x)
    return torch.matmul(matrix[:, None], across)


def solarize(x: Tensor) -> Tensor:
    """Invert all values of 0.5 and above."""
    return torch.where(x < 0.5, x, 1.0 - x)


@functools.cache
def fused_kernels(device: torch.device) -> ModuleType | None:
    """Return `color_triton` for CUDA; None for a CPU and, with a warning, where Triton fails."""
    if device.type != "cuda":
        return None
    try:
        from harl_fast.data.views import color_triton

        color_triton.check_driver()
    except (ImportError, OSError, RuntimeError) as error:
        _log.warning(
            "Triton cannot be used (%s): the GPU colours views by hundreds of small kernels, which "
            "may take a tenth of a step. Install triton and a C compiler (gcc), or leave it to the "
            "loader with --set data.colour=loader",
            one_line(str(error)),
        )
        return None
    return color_triton


def _on_device(values: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    """Return numbers as float32 on a device, by one copy from page-locked memory."""
    packed = torch.from_numpy(values.astype(np.float32))
    if torch.cuda.is_available():
        packed = packed.pin_memory()
    return packed.to(device, non_blocking=True)


_JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)


class Photometric(nn.Module):
    """Turns the loader's uint8 views into the network's input.

    mean, std: one value per channel, C = 3 or 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        policies: Sequence[ViewConfig],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__()
        _check_colours(policies, mean, std)
        validated(RunConfig, {"seed": seed}, where="colours")
        check_augmentations(policies)
        self.policies, self.seed = tuple(policies), seed
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor, *, view: int, ids: npt.ArrayLike, epoch: int) -> Tensor:
        """Return (B, C, S, S) float32, normalised, in channels-last memory.

        images: (B, S, S, C) uint8 on the module's device. view: which policy. ids: (B,) sample
        ids on the host.
        """
        return self._coloured({view: images}, ids, epoch=epoch)[0]

    def batch(self, views: Sequence[Tensor], *, ids: npt.ArrayLike, epoch: int) -> list[Tensor]:
        """Do so for all views of a batch, the first by the first policy and so on."""
        return self._coloured(dict(enumerate(views)), ids, epoch=epoch)

    @torch.no_grad()
    def _coloured(
        self, images: Mapping[int, Tensor], ids: npt.ArrayLike, *, epoch: int
    ) -> list[Tensor]:
        """Return the views whose numbers and pixels are given."""
        draws = [
            draw_params(self.policies[view], ids, seed=self.seed, epoch=epoch, view=view)
            for view in images
        ]
        kernels = fused_kernels(self.mean.device)
        packed = None if kernels is None else _on_device(np.stack(draws), self.mean.device)
        found = []
        for place, (view, pixels) in enumerate(images.items()):
            policy, drawn = self.policies[view], draws[place]
            if kernels is None or packed is None:
                x = self.colour(pixels, Draws.of(drawn), policy=policy)
            else:
                # What `augment` adds comes before the normalisation.
                mean, std = (None, None) if policy.augment else (self.mean, self.std)
                blur_px = blur_radius(policy) if drawn[:, BLUR].any() else 0
                x = kernels.colour_views(pixels, packed[place], mean=mean, std=std, radius=blur_px)
                if mean is not None:
                    found.append(x)
                    continue
                x = x.contiguous()
            augment(x, policy, ids, seed=self.seed, epoch=epoch, view=view)
            found.append(self.normalize(x))
        return found

    def colour(self, images: Tensor, drawn: Draws, *, policy: ViewConfig) -> Tensor:
        """Return (B, C, S, S) float32 in [0, 1] with the drawn operations applied.

        images: (B, S, S, C) uint8.
        """
        x = unit_planes(images)
        for place in range(len(_JITTER)):
            for number, operation in enumerate(_JITTER):
                rows = rows_of(drawn.jitter & (drawn.order[:, place] == number), x)
                apply_to_rows(x, rows, operation, values_of(drawn.factors[:, number], x))
        sigma = values_of(drawn.sigma, x)
        apply_to_rows(
            x, rows_of(drawn.grey, x), lambda part, _: luminance(part).expand_as(part), sigma
        )
        radius = blur_radius(policy)
        apply_to_rows(
            x, rows_of(drawn.blur, x), lambda part, s: blur(part, s, radius=radius), sigma
        )
        apply_to_rows(x, rows_of(drawn.solarize, x), lambda part, _: solarize(part), sigma)
        return x

    def normalize(self, x: Tensor) -> Tensor:
        """Return planar (B, C, H, W) [0, 1] pixels normalised, in channels-last memory."""
        x = (x - self.mean[:, None, None]).div_(self.std[:, None, None])
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def plain(self, images: Tensor) -> Tensor:
        """Return (B, C, S, S) normalised without any colouring, for evaluation.

        images: (B, S, S, C) uint8 on the module's device.
        """
        return self.normalize(unit_planes(images))


def unit_planes(images: Tensor) -> Tensor:
    """Return (B, C, H, W) contiguous float32 in [0, 1] from (B, H, W, C) uint8."""
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255.0)
