"""The colour rules of `color_device` as Triton kernels: a view in two kernels, in four if blurred.

A program works on pixels of one picture, so that a picture's own operations are branches that all
its threads take alike. Everything between reading the bytes and writing the view stays in registers
but for the contrast's mean, which needs a pass of its own, and the blur, whose two axes need one
each. Pixels are interleaved, as the loader gives them and as the network takes them. Without a GPU
the kernels run under TRITON_INTERPRET=1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from harl_fast.data.views import color_cpu

_WIDTH = tl.constexpr(color_cpu.PARAMS)
_JITTER, _FACTORS = tl.constexpr(color_cpu.JITTER), tl.constexpr(color_cpu.FACTORS)
_ORDER, _GREY = tl.constexpr(color_cpu.ORDER), tl.constexpr(color_cpu.GREY)
_BLUR, _SIGMA = tl.constexpr(color_cpu.BLUR), tl.constexpr(color_cpu.SIGMA)
_SOLARIZE = tl.constexpr(color_cpu.SOLARIZE)
_BLOCK = 1024


def check_driver() -> None:
    """Raise RuntimeError or OSError unless Triton finds a GPU and the compiler of C it needs."""
    triton.runtime.driver.active.get_current_device()


def colour_views(
    images: Tensor,
    params: Tensor,
    *,
    mean: Tensor | None,
    std: Tensor | None,
    radius: int,
) -> Tensor:
    """Return (B, C, S, S) float32 coloured views in channels-last memory.

    images: (B, S, S, C) uint8. params: (B, PARAMS) float32 of `color_cpu.draw_batch`.
    mean, std: (C,) float32, of the normalisation; None for pixels in [0, 1]. radius: of
    `color_cpu.blur_radius`; 0 if no picture is blurred. All tensors are on one device.
    """
    count, side, _, channels = images.shape
    mean = params.new_zeros(channels) if mean is None else mean
    std = params.new_ones(channels) if std is None else std
    middles = params.new_empty(count)
    out = params.new_empty(images.shape)
    each: dict[str, Any] = {"S": side, "C": channels, "BLOCK": _BLOCK}
    tiles = triton.cdiv(side * side, _BLOCK)
    images = images.contiguous()
    launch(middle_kernel, (count,), images, params, middles, **each)
    launch(colour_kernel, (count, tiles), images, params, middles, mean, std, out, **each)
    if radius:
        tiles = triton.cdiv(side * side * channels, _BLOCK)
        across = torch.empty_like(out)
        for source, target, stride in ((out, across, channels), (across, out, side * channels)):
            launch(
                blur_kernel,
                (count, tiles),
                *(source, params, mean, std, target, radius),
                STRIDE=stride,
                FINISH=target is out,
                **each,
            )
    return out.permute(0, 3, 1, 2)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel on a grid of programs."""
    kernel[grid](*args, **constants)


@triton.jit
def _load(images, at, inside, C: tl.constexpr):
    """Return red, green and blue in [0, 1]; of one channel three times its level."""
    red = tl.load(images + at * C, mask=inside, other=0).to(tl.float32) / 255.0
    green, blue = red, red
    if C == 3:
        green = tl.load(images + at * C + 1, mask=inside, other=0).to(tl.float32) / 255.0
        blue = tl.load(images + at * C + 2, mask=inside, other=0).to(tl.float32) / 255.0
    return red, green, blue


@triton.jit
def _sum(first, second):
    return first + second


@triton.jit
def _luminance(red, green, blue):
    return red * 0.299 + green * 0.587 + blue * 0.114


@triton.jit
def _unit(value):
    return tl.minimum(tl.maximum(value, 0.0), 1.0)


@triton.jit
def _about(value, middle, factor):
    return _unit(middle + factor * (value - middle))


@triton.jit
def _hued(turn, start, value, chroma):
    """Return a channel of a hue in [0, 6): the value less chroma times a trapezoid of the hue."""
    phase = turn + start
    phase = tl.where(phase >= 6.0, phase - 6.0, phase)
    return value - chroma * _unit(tl.minimum(phase, 4.0 - phase))


@triton.jit
def _hue(red, green, blue, shift):
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    safe = tl.where(chroma > 0.0, chroma, 1.0)
    sector = tl.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0)
    sector = tl.where(value == red, (green - blue) / safe, sector)
    turn = sector / 6.0 + shift
    turn = (turn - tl.floor(turn)) * 6.0
    red = _hued(turn, 5.0, value, chroma)
    green = _hued(turn, 3.0, value, chroma)
    blue = _hued(turn, 1.0, value, chroma)
    return red, green, blue


@triton.jit
def _jitter(red, green, blue, own, stop, middle):
    """Apply the operations of the places before ``stop``; own: the picture's parameters."""
    for place in range(0, stop):
        number = tl.load(own + _ORDER + place).to(tl.int32)
        factor = tl.load(own + _FACTORS + number)
        if number == 0:
            red, green, blue = _unit(red * factor), _unit(green * factor), _unit(blue * factor)
        elif number == 3:
            red, green, blue = _hue(red, green, blue, factor)
        else:
            about = _luminance(red, green, blue)
            if number == 1:
                about = about * 0.0 + middle
            red = _about(red, about, factor)
            green = _about(green, about, factor)
            blue = _about(blue, about, factor)
    return red, green, blue


@triton.jit
def _finish(value, own, mean, std):
    if tl.load(own + _SOLARIZE) != 0.0:
        value = tl.where(value < 0.5, value, 1.0 - value)
    return (value - mean) / std


@triton.jit
def middle_kernel(images, params, middles, S: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Fill ``middles`` (B,) with the mean luminance that each picture's contrast turns about."""
    sample = tl.program_id(0).to(tl.int64)
    own = params + sample * _WIDTH
    stop = 0
    for place in tl.static_range(4):
        stop = tl.where(tl.load(own + _ORDER + place) == 1.0, place, stop)
    total = tl.full([BLOCK], 0.0, tl.float32)
    if tl.load(own + _JITTER) != 0.0:
        for start in range(0, S * S, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < S * S
            red, green, blue = _load(images + sample * S * S * C, at, inside, C)
            red, green, blue = _jitter(red, green, blue, own, stop, 0.0)
            total += tl.where(inside, _luminance(red, green, blue), 0.0)
    tl.store(middles + sample, tl.reduce(total, 0, _sum) / (S * S))


@triton.jit
def colour_kernel(
    images,
    params,
    middles,
    mean,
    std,
    out,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fill ``out`` (B, S, S, C): finished where a picture is not blurred, else in [0, 1]."""
    sample = tl.program_id(0).to(tl.int64)
    own = params + sample * _WIDTH
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < S * S
    red, green, blue = _load(images + sample * S * S * C, at, inside, C)
    if tl.load(own + _JITTER) != 0.0:
        red, green, blue = _jitter(red, green, blue, own, 4, tl.load(middles + sample))
    if tl.load(own + _GREY) != 0.0:
        red = _luminance(red, green, blue)
        green, blue = red, red
    if tl.load(own + _BLUR) == 0.0:
        red = _finish(red, own, tl.load(mean), tl.load(std))
        green = _finish(green, own, tl.load(mean + 1 % C), tl.load(std + 1 % C))
        blue = _finish(blue, own, tl.load(mean + 2 % C), tl.load(std + 2 % C))
    place = out + sample * S * S * C + at * C
    tl.store(place, red, mask=inside)
    if C == 3:
        tl.store(place + 1, green, mask=inside)
        tl.store(place + 2, blue, mask=inside)


@triton.jit
def blur_kernel(
    source,
    params,
    mean,
    std,
    out,
    radius,
    STRIDE: tl.constexpr,
    FINISH: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Blur the blurred pictures along the axis whose neighbours are STRIDE values away.

    Mirrored at the borders, over ``radius`` neighbours on either side. FINISH: also solarize and
    normalise. Pictures that are not blurred are left alone.
    """
    sample = tl.program_id(0).to(tl.int64)
    own = params + sample * _WIDTH
    if tl.load(own + _BLUR) != 0.0:
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < S * S * C
        middle = (at // STRIDE) % S
        line = source + sample * S * S * C + at - middle * STRIDE
        sigma = tl.load(own + _SIGMA)
        value = tl.load(line + middle * STRIDE, mask=inside, other=0.0)
        total = sigma * 0.0 + 1.0
        for away in range(1, radius + 1):
            scaled = away / sigma
            weight = tl.exp(-0.5 * scaled * scaled)
            before = tl.abs(middle - away)
            after = S - 1 - tl.abs(S - 1 - middle - away)
            pair = tl.load(line + before * STRIDE, mask=inside, other=0.0)
            pair += tl.load(line + after * STRIDE, mask=inside, other=0.0)
            value += weight * pair
            total += 2.0 * weight
        value = value / total
        if FINISH:
            channel = at % C
            value = _finish(value, own, tl.load(mean + channel), tl.load(std + channel))
        tl.store(out + sample * S * S * C + at, value, mask=inside)
