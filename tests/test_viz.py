"""The contact sheet shows what the loader gave, in rows of five tiles; statistics by hand."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harl_fast import __version__
from harl_fast.config import load_config
from harl_fast.data.container.reader import read_samples
from harl_fast.data.occupancy import occupancy, occupancy_text
from harl_fast.engine.views import view_geometry
from harl_fast.errors import DataError
from harl_fast.files import sha256_file
from harl_fast.viz import TILE_PX, contact_sheet
from preprocess import preview
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


def still_views() -> list[str]:
    overrides = [f"data.views.{view}.{item}" for view in range(2) for item in STILL]
    return [*overrides, *(f"data.views.{view}.ratio=[0.1, 10]" for view in range(2))]


def test_chosen_samples_are_shown_in_the_order_given(tmp_path: Path) -> None:
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    out = tmp_path / "sheet.png"
    contact_sheet(path, load_config("demo"), out, ids=[7, 2], epoch=3)
    with Image.open(out) as png:
        about = json.loads(png.text["Description"])
    assert (about["samples"], about["epoch"], about["container"]) == ([7, 2], 3, str(path))
    assert about["beton_sha256"] == sha256_file(path) and about["config"]["seed"] == 0
    assert about["code"].startswith(__version__) and about["time"]
    sheet = cv2.imread(str(out))
    pitch = sheet.shape[0] // 2
    for row, sample in enumerate(read_samples(path, [7, 2])):
        height, width = sample.image.shape[:2]
        scale = TILE_PX / max(height, width)
        size = (round(width * scale), round(height * scale))
        shown = cv2.resize(sample.image, size, interpolation=cv2.INTER_NEAREST)[..., ::-1]
        tile = sheet[row * pitch :, :][: size[1], : size[0]]
        same = np.corrcoef(tile.astype(float).ravel(), shown.astype(float).ravel())[0, 1]
        assert same > 0.8  # outlines, boxes and the number lie over it
    with pytest.raises(DataError, match="no sample 12: its ids are 0 to 11"):
        contact_sheet(path, load_config("demo"), out, ids=[12])


def test_occupancy_of_a_central_mask(tmp_path: Path) -> None:
    """Views of the whole image, masks of its central half: the inner 2 x 2 of 4 x 4 cells."""
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    config = load_config("demo", overrides=still_views())
    found = occupancy(path, view_geometry(config), seed=0)
    assert (found.coverage == 0.25).all() and found.coverage.shape == (12,)
    cells = len(found.cells[0])
    assert cells == 4
    inner = np.zeros((cells, cells))
    inner[1:3, 1:3] = 1.0
    for grid, crops in zip(found.cells, found.per_crop, strict=True):
        assert np.allclose(grid, inner, atol=1e-6) and np.allclose(crops, 0.25)
    text = occupancy_text(found)
    assert "mean 25.0%" in text and "   20 to  30 %       12  ####" in text
    assert occupancy(path, view_geometry(config), seed=0, most=5).coverage.shape == (5,)


def test_the_program_writes_both_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    out = tmp_path / "sheet.png"
    assert preview.main([str(path), "--out", str(out), "--ids", "3,5", "--stats"]) == 0
    sheet, chart = cv2.imread(str(out)), cv2.imread(str(tmp_path / "sheet_stats.png"))
    assert sheet.shape[0] // 2 > TILE_PX
    assert chart.shape[1] == 3 * chart.shape[0]  # coverage and two views
    # All masks cover a quarter: the third bar of ten is as high as the panel, no other is drawn.
    bars = chart[:, : chart.shape[0]].max(axis=2) > 100
    columns = np.flatnonzero(bars[60:280].mean(axis=0) > 0.9)
    assert 40 + 52 <= columns.min() and columns.max() <= 40 + 78 and len(columns) > 15
    assert str(tmp_path / "sheet_stats.png") in capsys.readouterr().out
    for wrong in (["--ids", "a"], ["--count", "0"], ["--epoch", "-1"]):
        with pytest.raises(SystemExit):
            preview.main([str(path), *wrong])
