"""How all sheets of pictures look: captioned rows of tiles under column heads, and a legend.

Text stands on plain paper only, never on a picture; what is no picture is hatched. So everything
reads the same whatever the pictures show.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""
Colour = tuple[int, int, int]
Row = tuple[str, Mapping[str, Picture]]
"""A caption, and tiles of equal size by column head. A caption without tiles heads a section."""

TILE_PX = 192
"""Side of a tile, and longest side of the picture on it."""
MARGIN_PX, GAP_PX, CAPTION_PX = 12, 8, 20
_HEAD_LETTERS = 28
"""As many fit over a tile in a line of a column head."""
PAPER, INK, _FRAME = (248, 248, 246), (32, 32, 32), (128, 128, 128)
OUTLINE = (255, 220, 0)
"""Of a mask."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_FONT, _LARGE = ImageFont.load_default(12), ImageFont.load_default(15)
_LEAST_PX = 640
"""Sheets of few columns are at least as wide, for their captions and legend."""
_MARK = (14, 26)
"""Height and width of a colour in the legend."""
Legend = Sequence[tuple[Colour | Picture, str]]
"""What a colour, or a piece of a picture of 14 x 26 px, means."""


def hatched(height: int, width: int) -> Picture:
    """Return (height, width, 3) pixels of the pattern that stands where there is no picture."""
    stripes = np.add.outer(np.arange(height), np.arange(width)) // 3 % 2
    return np.repeat(np.where(stripes, 232, 208).astype(np.uint8)[..., None], 3, axis=2)


NO_IMAGE = (hatched(*_MARK), "no image here")
"""Entry of a legend."""


def resized(picture: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Return (H, W) or (H, W, 3) pixels at another size: means where it shrinks, else nearest."""
    how = Image.Resampling.BOX if height < len(picture) else Image.Resampling.NEAREST
    return np.array(Image.fromarray(picture).resize((width, height), how))


def fitted(picture: Picture) -> Picture:
    """Return a picture at the size where its longer side is a tile's."""
    height, width = picture.shape[:2]
    scale = TILE_PX / max(height, width)
    return resized(picture, max(1, round(height * scale)), max(1, round(width * scale)))


def tile(picture: Picture) -> Picture:
    """Return a square tile with a fitted picture at its top left, the rest hatched."""
    ground = hatched(TILE_PX, TILE_PX)
    ground[: picture.shape[0], : picture.shape[1]] = picture
    return ground


def outline(picture: Picture, mask: npt.NDArray[np.bool_], colour: Colour) -> None:
    """Draw a mask's inner edge into a picture of its size, with a dark line along its outside."""
    near = [np.roll(np.pad(mask, 1), step, axis)[1:-1, 1:-1] for step in (1, -1) for axis in (0, 1)]
    picture[np.any(near, axis=0) & ~mask] //= 3
    # What leaves the picture ends there: its border is an edge, too.
    picture[mask & ~np.all(near, axis=0)] = colour


def sheet(rows: Sequence[Row], *, title: str, legend: Legend = ()) -> Picture:
    """Return a sheet: the title, the legend, the column heads, then the rows.

    All rows with tiles have the first one's columns. Tiles keep their pixels; captions too long are
    shortened.
    """
    first = next(tiles for _, tiles in rows if tiles)
    tile_height, tile_width = next(iter(first.values())).shape[:2]
    lefts = [MARGIN_PX + column * (tile_width + GAP_PX) for column in range(len(first))]
    width = max(_LEAST_PX, lefts[-1] + tile_width + MARGIN_PX)
    pictures: list[tuple[int, int, Picture]] = []
    texts = [(MARGIN_PX, 9, title, _LARGE)]
    left, top = MARGIN_PX, 34
    for mark, text in legend:
        taken = _MARK[1] + 6 + round(_FONT.getlength(text))
        if left > MARGIN_PX and left + taken > width:
            left, top = MARGIN_PX, top + 20
        shown = np.array(np.broadcast_to(np.asarray(mark, np.uint8), (*_MARK, 3)))
        shown[[0, -1]] = shown[:, [0, -1]] = _FRAME
        pictures.append((left, top, shown))
        texts.append((left + _MARK[1] + 6, top, text, _FONT))
        left += taken + 18
    top += 26 if legend else 6
    heads = ["\n".join(textwrap.wrap(head, _HEAD_LETTERS)) for head in first]
    texts += [(x, top, head, _FONT) for x, head in zip(lefts, heads, strict=True)]
    top += 19 + 15 * max(head.count("\n") for head in heads)
    for caption, tiles in rows:
        texts.append((MARGIN_PX, top + 4, caption, _FONT if tiles else _LARGE))
        top += CAPTION_PX if tiles else 26
        if tiles:
            pictures += [(x, top, one) for x, one in zip(lefts, tiles.values(), strict=True)]
            top += tile_height + GAP_PX
    page = Image.new("RGB", (width, top), PAPER)
    draw = ImageDraw.Draw(page)
    for left, top, picture in pictures:
        page.paste(Image.fromarray(picture), (left, top))
    for left, top, text, font in texts:
        draw.text((left, top), _shortened(text, width - left, font), fill=INK, font=font)
    return np.array(page)


def _shortened(text: str, width: int, font: Font) -> str:
    """Return a text in letters that the font has, its middle left out where it is too long."""
    whole = text.encode("ascii", "backslashreplace").decode()
    cut, most = whole, width // 2  # no letter is narrower than 2 px, and measuring takes long
    if max(map(len, whole.split("\n"))) > most:
        cut = f"{whole[: most // 2]}...{whole[-(most // 2) :]}"
    while max(font.getlength(line) for line in cut.split("\n")) > width:
        kept = (len(cut) - 4) // 2
        cut = f"{whole[:kept]}...{whole[-kept:]}"
    return cut
