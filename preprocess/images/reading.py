"""The rules by which files' values become colours: one for samples and the masks made of them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from typing import Any

from harl_fast.options import checked, to_float

CONVERTED = "colour profile converted to sRGB"
UNUSABLE = "colour profile unusable, pixels taken as they are"
NO_EXIF = "EXIF unreadable, taken as upright"
UNNAMED_ALPHA = "a TIFF's fourth value has no name, taken for transparency"
FIRST_PAGE = "with further pages, the first taken (PAGES=all takes all)"
NO_COLOUR = "in colour, of which the luma was kept (CHANNELS=1)"
FEW_LEVELS = "left with fewer than 64 of their grey levels (another RANGE keeps more)"
"""Remarks on samples; manifests and summaries count them."""
STORED_PX = 512
"""Longest side to which images are shrunk unless told otherwise, and of which masks are made."""


class UnusableImageError(Exception):
    """A file that cannot become a sample; the message is the reason that reports show."""


@dataclass(frozen=True)
class GreyRange:
    """Which values of greys with more than 8 bits are black and white."""

    kind: str = "full"
    """``full``: what the file's type holds. ``minmax``: each image's least and greatest value.
    ``percentile``: those that ``low`` and ``high`` percent of each image's values lie below.
    ``fixed``: ``low`` and ``high``. ``auto``: a fixed range of the whole set, which `settle.settle`
    puts in place. What lies outside is black or white."""
    low: float = 0.0
    high: float = 0.0
    found: str = ""
    """How ``auto`` came to this range; empty for ranges that were asked for."""

    @property
    def name(self) -> str:
        """The text that `parse_range` turns into this range."""
        ends = ":".join(map(_digits, (self.low, self.high)))
        return {"fixed": ends, "percentile": f"percentile:{ends}"}.get(self.kind, self.kind)


def _digits(end: float) -> str:
    """Return a number in six digits, or in as many more as tell it from others."""
    short = f"{end:g}"
    return short if float(short) == end else repr(end).removesuffix(".0")


def parse_range(text: str) -> GreyRange:
    """Return the range that auto, full, minmax, LOW:HIGH or percentile:LOW:HIGH names.

    Raises `ValueError` for anything else.
    """
    if text in ("auto", "full", "minmax"):
        return GreyRange(text)
    ends = text.removeprefix("percentile:")
    low, _, high = ends.partition(":")
    try:
        found = GreyRange("fixed" if ends == text else "percentile", to_float(low), to_float(high))
    except ValueError:
        raise ValueError(
            f"{text!r} is none of auto, full, minmax, LOW:HIGH and percentile:LOW:HIGH"
        ) from None
    if not -math.inf < found.low < found.high < math.inf:
        raise ValueError(f"{text!r}: LOW and HIGH are finite, and LOW is the smaller")
    if found.kind == "percentile" and not 0.0 <= found.low < found.high <= 100.0:
        raise ValueError(f"{text!r}: percentiles LOW and HIGH are from 0 to 100")
    return found


@dataclass(frozen=True)
class Reading:
    """How files are read."""

    grey: GreyRange = GreyRange()
    icc: bool = True
    """Whether pixels with an embedded colour profile are converted to sRGB."""
    keep_warned: bool = False
    """Whether damaged JPEGs and WebPs (see `soundness`) are taken as far as Pillow reads them."""
    all_pages: bool = False
    """Whether each page of a TIFF is an image, see `sources.pages.with_pages`."""
    channels: int = 3
    """1: pictures are grey, those in colour by their luma. 0 leaves it to `settle.settle`."""

    def facts(self) -> dict[str, Any]:
        """Return what manifests record."""
        found = {"range_found": self.grey.found} if self.grey.found else {}
        kept = {"keep_warned": True} if self.keep_warned else {}
        paged = {"pages": "all"} if self.all_pages else {}
        channels = {"channels": self.channels} if self.channels != 3 else {}
        return {"range": self.grey.name, **found, "icc": self.icc, **kept, **paged, **channels}


DEFAULT_READING = Reading()


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how files are read, see `reading_of`."""
    parser.add_argument(
        "--range",
        type=checked(parse_range),
        default="auto",
        metavar="RANGE",
        help="which values of greys of over 8 bits are black and white: auto (what tags or a "
        "sample of the images say, one range for all), full (of the file's type), LOW:HIGH, or of "
        "each image minmax or percentile:LOW:HIGH; default auto",
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


def add_pages_and_channels(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which pages of TIFFs are images, and whether these are grey."""
    parser.add_argument(
        "--channels",
        choices=("3", "1", "auto"),
        default="3",
        help="1: grey pictures, of those in colour the luma, for a network with "
        "model.in_channels 1; auto: 1 if a sample of the images is grey; default 3",
    )
    parser.add_argument(
        "--pages",
        choices=("first", "all"),
        default="first",
        help="of TIFFs with several pages take the first, or all as name#1, name#2, ...; default "
        "first",
    )


def reading_of(args: argparse.Namespace) -> Reading:
    """Return how the command line asks for files to be read."""
    reading = Reading(args.range, args.icc, args.keep_warned)
    if not hasattr(args, "pages"):  # a program without `add_pages_and_channels`
        return reading
    channels = {"3": 3, "1": 1, "auto": 0}[args.channels]
    return replace(reading, all_pages=args.pages == "all", channels=channels)
