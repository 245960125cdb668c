"""The contact sheet shows what the loader gave, in rows of five tiles."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from harl_fast.config import load_config
from harl_fast.viz import TILE_PX, contact_sheet
from tests.betons import plain_item, write_beton

STILL = ["jitter_p=0", "gray_p=0", "blur_p=0", "solarize_p=0", "flip_p=0", "scale=[1, 1]"]


def test_the_sheet_shows_original_views_and_cells(tmp_path: Path) -> None:
    """Without any randomness both views are the whole, nearly square picture, as the original."""
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    overrides = [f"data.views.{view}.{item}" for view in range(2) for item in STILL]
    config = load_config("demo", overrides=[*overrides, "data.views.0.ratio=[0.5, 2]"])
    out = tmp_path / "sheet.png"
    contact_sheet(path, config, out, count=3)
    sheet = cv2.imread(str(out)).astype(float)
    pitch = sheet.shape[0] // 3
    assert sheet.shape == (3 * pitch, 5 * pitch, 3) and pitch > TILE_PX
    for row in range(3):
        tiles = [sheet[row * pitch :, column * pitch :][:TILE_PX, :TILE_PX] for column in range(5)]
        middle = slice(TILE_PX // 2 - 20, TILE_PX // 2 + 20)
        corner = slice(2, 12)
        # The mask is the middle of the picture: its cells are bright, those of the border dark.
        assert tiles[2][middle, middle].mean() > 0.8 * tiles[1][middle, middle].mean()
        assert tiles[2][corner, corner].mean() < 0.5 * tiles[1][corner, corner].mean()
        assert np.corrcoef(tiles[1].ravel(), tiles[3].ravel())[0, 1] > 0.9
