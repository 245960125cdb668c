"""Colour operations beyond BYOL's own: a table that other packages may add to.

BYOL's jitter, grey, blur and solarize are one fused kernel in `color_cpu` and batched operations in
`color_device`; their random numbers are draws 0 to `color_cpu.PARAMS` - 1 of a view's colour
stream. An operation of this table is a plain torch function. It comes after them and before the
normalisation, on the device and in the loader's threads alike. A view uses it when its ``augment``
names it with a probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harl_fast.config import ViewConfig
from harl_fast.data.views.color_cpu import PARAMS
from harl_fast.errors import ConfigError, nearest, shown
from harl_fast.rng import PHOTOMETRIC, uniforms


class Augmentation(NamedTuple):
    """One colour operation."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """Of (B, C, S, S) float32 pixels in [0, 1], planar, and (B, ``draws``) float32 random numbers
    in [0, 1), one row per picture; returns pixels of the same kind and may overwrite its input."""
    first_draw: int
    """Index in the colour stream of the draw that decides whether a picture is changed; those of
    ``apply`` follow. It is part of what a seed means: never change it, and give each operation its
    own, from `color_cpu.PARAMS` (13) on."""
    draws: int = 0
    """How many random numbers ``apply`` takes."""


AUGMENTATIONS: dict[str, Augmentation] = {}
"""Operations by the name that a view's ``augment`` gives."""


def check_augmentations(policies: Sequence[ViewConfig]) -> None:
    """Raise ConfigError for unknown operations and for operations that share draws."""
    for policy in policies:
        taken = dict.fromkeys(range(PARAMS), "BYOL's operations")
        for name in policy.augment:
            if name not in AUGMENTATIONS:
                known = (", ".join(AUGMENTATIONS) or "none") + nearest(name, AUGMENTATIONS)
                raise ConfigError(
                    f"augment: no operation {shown(name)}; known are {known}. Add it to "
                    f"harl_fast.data.views.augment.AUGMENTATIONS before the loader is made"
                )
            first = AUGMENTATIONS[name].first_draw
            for draw in range(first, first + 1 + AUGMENTATIONS[name].draws):
                if (other := taken.setdefault(draw, name)) != name:
                    raise ConfigError(
                        f"augment: '{name}' and {other} share draw {draw}: give it another "
                        f"first_draw, from {PARAMS} on"
                    )


def augment(
    x: Tensor, policy: ViewConfig, ids: npt.ArrayLike, *, seed: int, epoch: int, view: int
) -> None:
    """Apply a view's ``augment`` in place, in the order of its names.

    x: (B, C, S, S) float32 in [0, 1], planar. ids: (B,) sample ids on the host.
    """
    for name, probability in policy.augment.items():
        operation = AUGMENTATIONS[name]
        first, count = operation.first_draw, operation.first_draw + 1 + operation.draws
        drawn = uniforms(seed, epoch, ids, view=view, purpose=PHOTOMETRIC, count=count)
        chosen, numbers = drawn[:, first] < probability, drawn[:, first + 1 :]
        apply_to_rows(x, rows_of(chosen, x), operation.apply, values_of(numbers, x))


def rows_of(chosen: npt.NDArray[np.bool_], like: Tensor) -> Tensor:
    """Return the indices of the rows chosen, on a tensor's device."""
    return torch.from_numpy(np.flatnonzero(chosen)).to(like.device, non_blocking=True)


def values_of(values: npt.NDArray[np.float64], like: Tensor) -> Tensor:
    """Return numbers as float32 on a tensor's device."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=True)


def apply_to_rows(
    x: Tensor, rows: Tensor, operation: Callable[[Tensor, Tensor], Tensor], values: Tensor
) -> None:
    """Replace the given rows of ``x`` by the operation's result on them and on their values."""
    if len(rows) == len(x):
        x.copy_(operation(x, values))
    elif len(rows):
        x[rows] = operation(x[rows], values[rows])
