"""What stands on a sheet of `harl_fast.drawing`: its tiles by place, and the texts it draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ImageDraw

from harl_fast.drawing import CAPTION_PX, GAP_PX, MARGIN_PX, TILE_PX

Picture = npt.NDArray[np.uint8]
PITCH = CAPTION_PX + TILE_PX + GAP_PX
"""From one row of a section to the next."""


def tiles_of(sheet: Picture, *, rows: int, columns: int) -> list[list[Picture]]:
    """Return the square tiles of a sheet's last rows."""
    lefts = [MARGIN_PX + column * (TILE_PX + GAP_PX) for column in range(columns)]
    tops = [len(sheet) - (rows - row) * PITCH + CAPTION_PX for row in range(rows)]
    return [[sheet[top:, left:][:TILE_PX, :TILE_PX] for left in lefts] for top in tops]


def texts_drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that all texts come into which Pillow draws from now on."""
    found: list[str] = []
    plain = ImageDraw.ImageDraw.text

    def text(draw: ImageDraw.ImageDraw, at: Any, words: str, *args: Any, **more: Any) -> None:
        found.append(words)
        plain(draw, at, words, *args, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found
