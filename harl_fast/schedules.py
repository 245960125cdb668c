"""Learning rate, tau, alpha, beta and view sizes as pure functions of the progress."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from harl_fast.config import LARGEST_PX, SMALLEST_PX
from harl_fast.errors import ConfigError, one_line, shown
from harl_fast.options import check_finite, check_whole, to_float

_STEPS = "steps:V0,T1:V1,T2:V2,... with rising times in (0, 1)"
_FORMS = f"a number, cosine:START:END, or {_STEPS}"

Value = TypeVar("Value", int, float)


def scaled_lr(base: float, *, batch_global: int, rule: str = "linear") -> float:
    """Return the peak learning rate for a global batch.

    rule: linear (base * batch / 256), sqrt (base * sqrt(batch); SimCLR, appendix B.1) or none.
    Raises ConfigError for another one, and for numbers that are no rate or no batch.
    """
    check_finite(math.inf, base=base)
    check_whole(1, batch_global=batch_global)
    if rule == "linear":
        return base * batch_global / 256
    if rule == "sqrt":
        return base * math.sqrt(batch_global)
    if rule == "none":
        return base
    raise ConfigError(f"learning-rate scaling '{rule}' is none of linear, sqrt, none")


def warmup_cosine(
    step: int, *, total: int, warmup: float, peak: float, floor: float = 0.0
) -> float:
    """Return the learning rate of ``step`` of ``total`` (BYOL, section 3.3).

    It rises linearly from 0 at step 0 to ``peak`` at step ``warmup`` and falls along half a cosine
    to ``floor`` at step ``total``, where it stays. Raises ConfigError for negative or endless ones.
    """
    check_finite(math.inf, step=step, total=total, warmup=warmup, peak=peak, floor=floor)
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(total - warmup, 1e-9), 1.0)
    return _half_cosine(progress, peak, floor)


def cosine_tau(step: int, *, total: int, start: float, end: float = 1.0) -> float:
    """Return the share of the old target kept at ``step``: half a cosine from start to end.

    BYOL, section 3.3: 1 - (1 - start) (cos(pi step / total) + 1) / 2 when ``end`` is 1. Raises
    ConfigError for shares outside [0, 1] and for what is no step.
    """
    check_whole(1, total=total)
    check_finite(math.inf, step=step)
    check_finite(1.0, start=start, end=end)
    return _half_cosine(min(step / total, 1.0), start, end)


def weight_schedule(spec: str) -> Callable[[float], float]:
    """Return the value in [0, 1] as a function of the progress in [0, 1] that ``spec`` describes.

    spec: a number; "cosine:START:END", half a cosine; or "steps:V0,T1:V1,T2:V2", V0 until progress
    T1, then V1, and so on. Raises ConfigError for anything else.
    """
    kind, _, rest = spec.partition(":")
    if kind == "cosine":
        ends = [_share(text, spec) for text in rest.split(":")]
        if len(ends) != 2:
            raise _invalid(spec, "two values must follow cosine")
        start, end = ends
        return lambda progress: _half_cosine(min(max(progress, 0.0), 1.0), start, end)
    if kind == "steps":
        return _at(*_steps(rest, spec, _share))
    constant = _share(spec, spec)
    return lambda progress: constant


def size_schedule(spec: str) -> Callable[[float], int]:
    """Return the side of the views in pixels as a function of the progress in [0, 1).

    spec: a whole number of pixels, or "steps:160,0.7:192,0.85:224" as in `weight_schedule`. Raises
    ConfigError for anything else.
    """
    return _at(*_sizes(spec))


def size_changes(spec: str, *, epochs: int) -> list[int]:
    """Return the epochs, 0 first, in which the sizes of `size_schedule` begin to hold."""
    times, _ = _sizes(spec)
    starts = [bisect_left(range(epochs), time, key=lambda epoch: epoch / epochs) for time in times]
    # Of sizes that would begin in one epoch the last one holds; beyond the last epoch none does.
    return sorted({start for start in (0, *starts) if start < epochs})


def _sizes(spec: str) -> tuple[list[float], list[int]]:
    kind, _, rest = spec.partition(":")
    try:
        return _steps(rest, spec, _pixels) if kind == "steps" else ([], [_pixels(spec, spec)])
    except ConfigError as error:
        reason = str(error).partition("; write ")[0]
        raise ConfigError(f"data.size_{reason}; write a number of pixels, or {_STEPS}") from error


def _steps(
    text: str, spec: str, read: Callable[[str, str], Value]
) -> tuple[list[float], list[Value]]:
    """Return n rising times in (0, 1) and the n + 1 values before, between and after them."""
    first, *others = text.split(",")
    values = [read(first, spec)]
    times: list[float] = []
    for other in others:
        time, mark, value = other.partition(":")
        if not mark:
            raise _invalid(spec, f"{shown(other)} is no TIME:VALUE")
        times.append(_share(time, spec))
        values.append(read(value, spec))
    bounds = [0.0, *times, 1.0]
    if any(a >= b for a, b in pairwise(bounds)):
        raise _invalid(spec, f"times {shown(times)} do not rise within (0, 1)")
    return times, values


def _at(times: list[float], values: list[Value]) -> Callable[[float], Value]:
    return lambda progress: values[sum(progress >= time for time in times)]


def _half_cosine(progress: float, start: float, end: float) -> float:
    share = (1.0 + math.cos(math.pi * progress)) / 2.0
    # Both ends come out exactly, and rounding cannot leave their range.
    value = start * share + end * (1.0 - share)
    return min(max(value, min(start, end)), max(start, end))


def _share(text: str, spec: str) -> float:
    try:
        value = to_float(text.strip())
    except ValueError as error:
        raise _invalid(spec, f"{shown(text)} is no number") from error
    if not 0.0 <= value <= 1.0:
        raise _invalid(spec, f"{one_line(text[:20])} is outside [0, 1]")
    return value


def _pixels(text: str, spec: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal()):
        raise _invalid(spec, f"{shown(text)} is no whole number of pixels")
    if len(text) > 20 or not SMALLEST_PX <= int(text) <= LARGEST_PX:
        raise _invalid(spec, f"{one_line(text[:20])} px is outside {SMALLEST_PX} to {LARGEST_PX}")
    return int(text)


def _invalid(spec: str, reason: str) -> ConfigError:
    return ConfigError(f"schedule {shown(spec)}: {reason}; write {_FORMS}")
