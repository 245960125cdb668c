"""Sheets: tiles keep their pixels, everything is said beside them, padding is no picture."""

from __future__ import annotations

import time

import numpy as np
import pytest

from harl_fast import drawing
from harl_fast.drawing import TILE_PX
from tests.sheets import texts_drawn, tiles_of

HEADS = ("first", "a second head that takes more than one line")


def noise(seed: int) -> drawing.Picture:
    return np.random.default_rng(seed).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)


def test_tiles_keep_their_pixels_and_all_is_said_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = texts_drawn(monkeypatch)
    rows = [(f"row {n}", {head: noise(10 * n + k) for k, head in enumerate(HEADS)}) for n in (0, 1)]
    legend = [((1, 2, 3), "a colour"), (noise(7)[:14, :26], "a piece"), drawing.NO_IMAGE]
    found = drawing.sheet([("a section", {}), *rows], title="the title", legend=legend)
    for row, (_, tiles) in zip(tiles_of(found, rows=2, columns=2), rows, strict=True):
        for tile, head in zip(row, HEADS, strict=True):
            np.testing.assert_array_equal(tile, tiles[head])
    wanted = ["the title", "a colour", "a piece", "no image here", "first"]
    wanted += ["a second head that takes\nmore than one line", "a section", "row 0", "row 1"]
    assert said == wanted
    assert (found == (1, 2, 3)).all(axis=2).sum() == 12 * 24  # its colour, within a frame


def test_texts_are_read_on_paper_of_one_colour() -> None:
    rows = [("a caption", {"a head": noise(0)})]
    empty = drawing.sheet([("", {"": noise(0)})], title="")
    changed = (drawing.sheet(rows, title="a title") != empty).any(axis=2)
    assert changed.any() and (empty[changed] == drawing.PAPER).all()
    assert sum(drawing.PAPER) - sum(drawing.INK) > 3 * 150


@pytest.mark.parametrize("grey", range(0, 256, 8))
def test_padding_is_told_from_any_plain_picture(grey: int) -> None:
    picture = np.full((TILE_PX, TILE_PX // 2, 3), grey, np.uint8)
    tile = drawing.tile(picture)
    assert (tile[:, : TILE_PX // 2] == grey).all()
    rest = tile[:, TILE_PX // 2 :]
    for top, left in ((0, 0), (50, 30), (TILE_PX - 6, TILE_PX // 2 - 6)):
        window = rest[top : top + 6, left : left + 6].reshape(-1, 3)
        assert len(np.unique(window, axis=0)) == 2 and (window != grey).any(axis=1).mean() >= 0.5


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), drawing.OUTLINE])
def test_an_outline_is_seen_on_any_ground(ground: drawing.Colour) -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[5:15, 8:20] = True  # it leaves the picture at the right
    picture = np.full((20, 20, 3), ground, np.uint8)
    drawing.outline(picture, mask, drawing.OUTLINE)
    yellow = (picture == drawing.OUTLINE).all(axis=2)
    assert yellow[5:15, 8].all() and yellow[5, 8:].all() and yellow[5:15, 19].all()
    assert (picture[5:15, 7] == np.array(ground) // 3).all()
    inside = picture[6:14, 9:19]
    assert (inside == ground).all() and (picture[:4] == ground).all()


def test_what_is_too_long_loses_its_middle_and_letters_that_no_font_has_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = texts_drawn(monkeypatch)
    long = f"begin{'x' * 5000}end.jpg"
    drawing.sheet([(long, {"h": noise(0)}), ("馬 é", {"h": noise(1)})], title="")
    cut = said[2]
    assert cut.startswith("beginxxx") and cut.endswith("xxxend.jpg") and "..." in cut
    assert 60 < len(cut) < 200 and said[3] == r"\u99ac \xe9"


def test_captions_of_any_length_are_shortened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said = texts_drawn(monkeypatch)
    caption = "".join(f"{number} " for number in range(100_000))
    start = time.monotonic()
    drawing.sheet([(caption, {"": noise(0)})], title="")
    assert time.monotonic() - start < 5
    (short,) = (text for text in said if text.startswith("0 1 2 "))
    assert "..." in short and short.endswith("99999 ")
