"""The contact sheet shows what the loader gave, in rows of five tiles; statistics by hand."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harl_fast import __version__
from harl_fast.config import RunConfig, load_config, override_config
from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.occupancy import occupancy, occupancy_text
from harl_fast.data.reader import read_samples
from harl_fast.drawing import MARGIN_PX, TILE_PX, fitted
from harl_fast.engine.views import view_geometry
from harl_fast.errors import ConfigError, DataError
from harl_fast.files import sha256_file
from harl_fast.viz import _BOXES, contact_sheet
from preprocess import preview
from tests.betons import Item, plain_item, write_beton
from tests.sheets import PITCH, texts_drawn, tiles_of

STILL = ["jitter_p=0", "gray_p=0", "blur_p=0", "solarize_p=0", "flip_p=0", "scale=[1, 1]"]


def test_the_sheet_shows_original_views_and_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any randomness both views are the whole, nearly square picture, as the original."""
    said = texts_drawn(monkeypatch)
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    overrides = [f"data.views.{view}.{item}" for view in range(2) for item in STILL]
    config = load_config("small", overrides=[*overrides, "data.views.0.ratio=[0.5, 2]"])
    out = tmp_path / "sheet.png"
    contact_sheet(path, config, out, count=3)
    sheet = cv2.imread(str(out)).astype(float)
    for tiles in tiles_of(sheet, rows=3, columns=5):
        middle = slice(TILE_PX // 2 - 20, TILE_PX // 2 + 20)
        corner = slice(2, 12)
        # The mask is the middle of the picture: its cells are bright, those of the border dark.
        assert tiles[2][middle, middle].mean() > 0.8 * tiles[1][middle, middle].mean()
        assert tiles[2][corner, corner].mean() < 0.5 * tiles[1][corner, corner].mean()
        assert np.corrcoef(tiles[1].ravel(), tiles[3].ravel())[0, 1] > 0.9
    text = "\n".join(said).replace(str(path), "FILE")
    for wanted in (
        "What the network receives from FILE, epoch 0\noutline of the mask\nbox of view 1\n",
        "box of view 2\n", "filled corner", "background dimmed", "no image here\n",
        "view 1 as the network\nreceives it, 64 x 64 px\nmask cells of view 1, 4 x 4\n",
        "view 2 as the network\nreceives it, 64 x 64 px\nmask cells of view 2, 4 x 4\n",
    ):  # fmt: skip
        assert wanted in text


def test_blue_is_the_box_of_view_1_and_pink_that_of_view_2(tmp_path: Path) -> None:
    """In the legend, and by what stands within: each view without colouring is its box, enlarged.

    Nothing else on the sheet has the pure colours of outline and boxes.
    """
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    overrides = [f"data.views.{view}.{item}" for view in range(2) for item in STILL[:-1]]
    out = tmp_path / "sheet.png"
    contact_sheet(path, load_config("small", overrides=overrides), out, ids=[3])
    with Image.open(out) as png:
        sheet = np.asarray(png)
    ((original, *views),) = tiles_of(sheet, rows=1, columns=5)
    plain = fitted(read_samples(path, [3])[0].image)
    marks = []
    for colour, view, other in (
        ((255, 220, 0), None, None),
        ((0, 170, 255), views[0], views[2]),
        ((255, 60, 160), views[2], views[0]),
    ):
        everywhere, drawn, legend = (
            (part == colour).all(axis=2) for part in (sheet, original, sheet[:-PITCH])
        )
        assert drawn.sum() > 100 and everywhere.sum() == drawn.sum() + legend.sum()
        marks.append(int(np.flatnonzero(legend.any(axis=0)).min()))
        if view is not None:
            rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
            box = plain[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            box = cv2.resize(box, (TILE_PX, TILE_PX)).astype(float).ravel()
            alike, unlike = (np.corrcoef(box, v.astype(float).ravel())[0, 1] for v in (view, other))
            assert alike > 0.95 and unlike < 0.9
    assert marks == sorted(marks)  # outline, view 1, view 2, as the texts


def test_all_views_are_drawn_each_in_a_colour_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    said = texts_drawn(monkeypatch)
    small = "{size_px: 32, scale: [0.05, 0.2], role: online}"
    views = f"data.views=[{{size_px: 64}}, {{size_px: 64}}, {small}, {small}]"
    config, out = load_config("small", overrides=[views]), tmp_path / "sheet.png"
    contact_sheet(path, config, out, ids=[3, 5])
    rows = tiles_of(cv2.imread(str(out)), rows=2, columns=9)
    assert all(tile.shape == (TILE_PX, TILE_PX, 3) and tile.std() > 5 for r in rows for tile in r)
    text = "\n".join(said)
    for view, size in enumerate((64, 64, 32, 32), 1):
        assert f"box of view {view}\n" in text
        assert f"view {view} as the network\nreceives it, {size} x {size} px" in text
    for original, *_ in rows:
        for colour in _BOXES[:4]:
            assert (original == colour[::-1]).all(axis=2).any()
    assert len(set(_BOXES)) == len(_BOXES) >= 6  # as many as the views of paper-multicrop


def test_pictures_of_a_pixels_width_are_drawn(tmp_path: Path) -> None:
    """Their boxes are less than a pixel of the sheet."""

    def thread(index: int) -> Item:
        shape = (2000, 1, 3) if index % 2 else (1, 2000, 3)
        return np.full(shape, 120, np.uint8), np.ones((64, 64), np.bool_), 0

    path = write_beton(tmp_path / "train.beton", thread, count=6)
    contact_sheet(path, load_config("small", overrides=[]), tmp_path / "sheet.png", count=6)
    assert len(list(tiles_of(cv2.imread(str(tmp_path / "sheet.png")), rows=6, columns=5))) == 6


@pytest.mark.parametrize(
    ("shares", "said"), [((0, 0), ()), ((0.8, 0.8), ("80%",)), ((0, 0.5), ("0% to 50%",))]
)
def test_the_legend_says_how_often_backgrounds_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: tuple[float, float], said: tuple[str]
) -> None:
    path, texts = write_beton(tmp_path / "a.beton", plain_item, count=12), texts_drawn(monkeypatch)
    overrides = [f"data.views.{view}.background_p={p}" for view, p in enumerate(shares)]
    contact_sheet(path, load_config("small", overrides=overrides), tmp_path / "a.png", ids=[3])
    found = [text for text in texts if "background in" in text]
    what = "foreground on another sample's background in {} of the views"
    assert found == [what.format(share) for share in said]


def still_views() -> list[str]:
    overrides = [f"data.views.{view}.{item}" for view in range(2) for item in STILL]
    return [*overrides, *(f"data.views.{view}.ratio=[0.1, 10]" for view in range(2))]


def test_chosen_samples_are_shown_in_the_order_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    out, said = tmp_path / "sheet.png", texts_drawn(monkeypatch)
    contact_sheet(path, load_config("small"), out, ids=[7, 2], epoch=3)
    classes = read_manifest(path).classes
    for sample in read_samples(path, [7, 2]):
        assert f"sample {sample.id}   {classes[sample.label]}   {sample.name}" in said
    with Image.open(out) as png:
        about = json.loads(png.text["Description"])
    assert (about["samples"], about["epoch"], about["container"]) == ([7, 2], 3, str(path))
    assert about["beton_sha256"] == sha256_file(path) and about["config"]["seed"] == 0
    assert about["code"].startswith(__version__) and about["time"]
    rows = tiles_of(cv2.imread(str(out)), rows=2, columns=5)
    for sample, (original, *_) in zip(read_samples(path, [7, 2]), rows, strict=True):
        height, width = sample.image.shape[:2]
        scale = TILE_PX / max(height, width)
        size = (round(width * scale), round(height * scale))
        shown = cv2.resize(sample.image, size, interpolation=cv2.INTER_NEAREST)[..., ::-1]
        tile = original[: size[1], : size[0]]
        same = np.abs(tile.astype(float) - shown).max(axis=2) < 24
        assert same.mean() > 0.8  # outlines and boxes lie over it
    with pytest.raises(DataError, match="no sample 12: its ids are 0 to 11"):
        contact_sheet(path, load_config("small"), out, ids=[12])


def test_occupancy_of_a_central_mask(tmp_path: Path) -> None:
    """Views of the whole image, masks of its central half: the inner 2 x 2 of 4 x 4 cells."""
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    config = load_config("small", overrides=still_views())
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
    assert sheet.shape[0] > 2 * PITCH
    assert chart.shape[1] // 3 == 260 + (2 * MARGIN_PX + 2 * 8) // 3  # coverage and two views
    # All masks cover a quarter: the third bar of ten is as high as the panel, no other is drawn.
    bars = (chart[..., ::-1] == (0, 120, 190)).all(axis=2)
    columns = np.flatnonzero(bars.sum(axis=0) == 260) - MARGIN_PX
    assert columns.min() >= 52 and columns.max() <= 78 and len(columns) > 15
    assert bars.sum() == 260 * len(columns)
    assert str(tmp_path / "sheet_stats.png") in capsys.readouterr().out
    for wrong in (["--ids", "a"], ["--count", "0"], ["--epoch", "-1"]):
        with pytest.raises(SystemExit):
            preview.main([str(path), *wrong])


def test_without_a_configuration_views_have_the_size_of_the_stored_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plain_item` makes pictures of 80 to 128 by 96 to 128 pixels."""
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    out = tmp_path / "sheet.png"

    def drawn(*options: str) -> RunConfig:
        assert preview.main([str(path), "--out", str(out), "--ids", "3", *options]) == 0
        with Image.open(out) as png:
            return RunConfig.model_validate(json.loads(png.text["Description"])["config"])

    with pytest.raises(ConfigError, match=r"^--set 'data\.workers=9999': data\.workers: "):
        drawn("--set", "data.workers=9999")
    own = drawn("--set", "seed=7")
    assert [view.size_px for view in own.data.views] == [96, 96] and own.seed == 7
    assert "the default, views of 96 px, 6 x 6 cells\n" in capsys.readouterr().out
    run = load_config("small", overrides=["data.views.0.size_px=48", "data.views.1.size_px=48"])
    (tmp_path / "config.yaml").write_text(run.yaml())
    assert drawn("--config", str(tmp_path / "config.yaml")) == run
    assert "config.yaml, views of 48 px, 3 x 3 cells\n" in capsys.readouterr().out


@pytest.mark.parametrize(("side", "size_px", "stem"), [(20, 32, "small"), (500, 224, "imagenet")])
def test_views_of_a_container_are_of_usual_size_and_have_cells(
    tmp_path: Path, side: int, size_px: int, stem: str
) -> None:
    def item(index: int) -> Item:
        return np.zeros((side, side, 3), np.uint8), np.ones((64, 64), np.bool_), 0

    path = write_beton(tmp_path / "train.beton", item, count=2)
    config = override_config(RunConfig(), preview.fitting(path))
    assert {view.size_px for view in config.data.views} == {size_px} and config.model.stem == stem
    assert all(view.cells >= 4 for view in view_geometry(config))
