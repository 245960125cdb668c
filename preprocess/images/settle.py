"""What ``auto`` stands for on a set of images: found once in a sample, before the work begins."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from harl_fast.data.order import spread
from preprocess.images.colours import Grey, deep_grey, percentiles, sampled
from preprocess.images.decode import decode_image, is_grey, open_image
from preprocess.images.members import ImageRef
from preprocess.images.png import SIGNIFICANT, keep_low_bytes
from preprocess.images.reading import GreyRange, Reading, UnusableImageError
from preprocess.images.tiff import STATED_RANGES

LOOKED_AT = 64
"""Images of a sample."""
_SMALL_PX = 64
"""Longest side at which a JPEG shows whether it is grey."""
_OUTLIERS = 0.1
"""Percent of an image's values that may lie below the range found, and above."""


class _Look(NamedTuple):
    """The range that one image of more than 8 bits suggests."""

    ends: tuple[float, float]
    by_tags: bool
    whole: bool
    """Whether the values are whole numbers."""
    stray: float | None = None
    """The end of the range that `_stray` names."""


def settle(reading: Reading, count: int, image: Callable[[int], ImageRef]) -> Reading:
    """Return ``reading`` with what it leaves to the images settled, from a sample of them.

    count, image: how many there are, and what returns one. The same images give the same answer. It
    is printed if it is not the default.
    """
    sample = [image(row) for row in spread(count, LOOKED_AT).tolist()]
    if reading.grey.kind == "auto":
        grey = find_range(sample)
        reading = replace(reading, grey=grey)
        if grey.found:
            print(f"greys of over 8 bits: black and white are {grey.name}, {grey.found}")
    if reading.channels == 0:
        channels = 1 if _are_grey(sample, replace(reading, channels=3)) else 3
        reading = replace(reading, channels=channels)
        print(f"pictures have {channels} channel{'s' * (channels > 1)}, by {len(sample)} of them")
    return reading


def _are_grey(images: Sequence[ImageRef], reading: Reading) -> bool:
    for image in images:
        with contextlib.suppress(UnusableImageError):  # said when it is converted
            if not is_grey(decode_image(image, side_px=_SMALL_PX, reading=reading).rgb):
                return False
    return True


def find_range(images: Sequence[ImageRef]) -> GreyRange:
    """Return the range that files state in common, else that of nearly all of their values.

    Files state it as PNG's significant bits, or as TIFF's bits or least and greatest values. Sets
    without deep greys, and such whose values are all the same, keep the full range.
    """
    found = list(_looks(images))
    stated = all(look.by_tags for look in found)
    low = min((look.ends[0] for look in found), default=0.0)
    high = max((look.ends[1] for look in found), default=0.0)
    if all(look.whole for look in found):
        low, high = float(math.floor(low)), float(math.ceil(high))
    if not low < high:
        return GreyRange()
    strays = [look.stray for look in found if look.stray is not None]
    if strays:
        print(
            f"note: in {len(strays):,} of {len(found)} images the value {strays[0]:g} is further "
            f"from all others than these are apart: if it stands for no data, give the others' "
            f"range, --range LOW:HIGH"
        )
    source = "tags" if stated else f"values but for {_OUTLIERS:g} % at each end"
    return GreyRange("fixed", low, high, f"auto: the {source} of {len(found)} images")


def _looks(images: Sequence[ImageRef]) -> Iterator[_Look]:
    for reference in images:
        if isinstance(reference, np.ndarray):
            continue
        try:
            with open_image(reference) as image:
                keep_low_bytes(image)
                grey = deep_grey(image)
                if grey is not None:
                    tags, whole = _stated(image, grey), grey.dtype.kind != "f"
                    ends = tags or percentiles(image, grey, _OUTLIERS, 100 - _OUTLIERS)
                    stray = None if tags else _stray(sampled(image, grey), ends)
                    yield _Look(ends, tags is not None, whole, stray)
        except UnusableImageError:  # said when it is converted
            continue


def _stray(values: npt.NDArray[np.float64], ends: tuple[float, float]) -> float | None:
    """Return the end that is further from all other values than these are apart, if one is."""
    for end in ends:
        others = values[values != end]
        apart = np.ptp(others) if len(others) < len(values) and len(others) else 0.0
        if 0 < apart < np.abs(others - end).min():
            return end
    return None


def _stated(image: Image.Image, grey: Grey) -> tuple[float, float] | None:
    """Return the least and greatest values that a file states, beyond those of its type."""
    bits = image.info.get(SIGNIFICANT, 16) if image.format == "PNG" else 16
    if 0 < bits < 16:
        # PNG has values scaled up to 16 bits; of writers that leave them as they were, none is
        # above what the bits hold.
        most = 2.0**bits - 1
        return 0.0, most if percentiles(image, grey, 0, 100)[1] <= most else 65535.0
    tags = getattr(image, "tag_v2", {})
    for least, most in STATED_RANGES:
        low, high = tags.get(least, (grey.least,)), tags.get(most, (math.nan,))
        if low[0] < high[0] < math.inf:
            return float(low[0]), float(high[0])
    whole_bytes = grey.greatest - grey.least in (0.0, 2.0**8 - 1, 2.0**16 - 1, 2.0**32 - 1)
    return None if whole_bytes else (grey.least, grey.greatest)
