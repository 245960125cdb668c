"""Mask methods: one function type, one table, one rule from soft map to mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.masks.binary import Mask, binarize
from preprocess.masks.heuristic import centre_prior, heuristic_map

MaskMethod = Callable[..., npt.NDArray[np.float32]]
"""(H, W, 3) uint8 RGB and keyword parameters to a map over the image: (S', S') float32, 0 to 1."""


@dataclass(frozen=True)
class Method:
    """One way to tell foreground from background."""

    function: MaskMethod
    about: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    supervision: str = "none"
    """"none", or "external" if people drew masks for its training."""
    fixed: bool = False
    """The map is the mask, cut at one half: a pattern that does not look at the image."""


def _center(rgb: npt.NDArray[np.uint8], *, sigma: float) -> npt.NDArray[np.float32]:
    return centre_prior(64, sigma=sigma)


def _full(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.ones((8, 8), np.float32)


METHODS = {
    "heuristic": Method(heuristic_map, "colour contrast to the border, refined", {"rounds": 4}),
    "center": Method(_center, "a disc in the middle, for comparison", {"sigma": 0.3}, fixed=True),
    "full": Method(_full, "the whole image, for comparison", fixed=True),
}


def find_mask(rgb: npt.NDArray[np.uint8], method: str) -> tuple[Mask, bool]:
    """Return a method's (S', S') mask of an image, and whether the stand-in had to serve."""
    chosen = METHODS[method]
    soft = chosen.function(rgb, **chosen.parameters)
    if chosen.fixed:
        return soft >= 0.5, False
    return binarize(soft)
