"""The rules by which files' values become colours: one for samples and the masks made of them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

from harl_fast.options import checked, to_float

CONVERTED = "colour profile converted to sRGB"
UNUSABLE = "colour profile unusable, pixels taken as they are"
NO_EXIF = "EXIF unreadable, taken as upright"
UNNAMED_ALPHA = "a TIFF's fourth value has no name, taken for transparency"
"""Remarks on samples; manifests and summaries count them."""


class UnusableImageError(Exception):
    """A file that cannot become a sample; the message is the reason that reports show."""


@dataclass(frozen=True)
class GreyRange:
    """Which values of greys with more than 8 bits are black and white."""

    kind: str = "full"
    """``full``: what the file's type holds. ``minmax``: each image's least and greatest value.
    ``fixed``: ``low`` and ``high``, and what lies outside is black or white."""
    low: float = 0.0
    high: float = 0.0

    @property
    def name(self) -> str:
        """The text that `parse_range` turns into this range."""
        return self.kind if self.kind != "fixed" else f"{self.low:g}:{self.high:g}"


def parse_range(text: str) -> GreyRange:
    """Return the range that ``full``, ``minmax`` or LOW:HIGH names; else `ValueError`."""
    if text in ("full", "minmax"):
        return GreyRange(text)
    low, _, high = text.partition(":")
    try:
        found = GreyRange("fixed", to_float(low), to_float(high))
    except ValueError:
        raise ValueError(f"{text!r} is none of full, minmax and LOW:HIGH") from None
    if not -math.inf < found.low < found.high < math.inf:
        raise ValueError(f"{text!r}: LOW and HIGH are finite, and LOW is the smaller")
    return found


@dataclass(frozen=True)
class Reading:
    """How files are read."""

    grey: GreyRange = GreyRange()
    icc: bool = True
    """Whether pixels with an embedded colour profile are converted to sRGB."""
    keep_warned: bool = False
    """Whether damaged JPEGs and WebPs (see `soundness`) are taken as far as Pillow reads them."""

    def facts(self) -> dict[str, Any]:
        """Return what manifests record."""
        kept = {"keep_warned": True} if self.keep_warned else {}
        return {"range": self.grey.name, "icc": self.icc, **kept}


DEFAULT_READING = Reading()


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how files are read, see `reading_of`."""
    parser.add_argument(
        "--range",
        type=checked(parse_range),
        default="full",
        metavar="RANGE",
        help="which values of greys of over 8 bits are black and white: full (of the file's type), "
        "minmax (of each image) or LOW:HIGH; default full",
    )
    parser.add_argument(
        "--icc",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="convert colour profiles to sRGB; default --icc",
    )
    parser.add_argument(
        "--keep-warned",
        action="store_true",
        help="take JPEG and WebP files that are found to be damaged as far as they decode; they "
        "are listed",
    )


def reading_of(args: argparse.Namespace) -> Reading:
    """Return how the command line asks for files to be read."""
    return Reading(args.range, args.icc, args.keep_warned)
