"""The heuristic on a small image, enlarged first."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from preprocess.images.arrays import Map, Pixels
from preprocess.masks.heuristic.method import heuristic_map


def enlarged_map(rgb: Pixels, *, factor: Annotated[int, Field(ge=2, le=16)] = 4) -> Map:
    """Return `heuristic_map` of pixels enlarged by bicubic interpolation.

    Below 64 pixels a side the heuristic repeats pixels to reach the size that it works at, and
    outlines have steps.
    """
    height, width = rgb.shape[:2]
    size = (width * factor, height * factor)
    return heuristic_map(np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC), np.uint8))
