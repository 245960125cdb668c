"""The demo set: a function of its seed, exact masks, and backgrounds that know no class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harl_fast.errors import DataError
from preprocess.demo.make import MARKER, DemoSettings, make_demo_set, plan
from preprocess.demo.render import render
from preprocess.demo.shapes import SHAPES

SIDE = 96


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_draws_a_visible_object(kind: str) -> None:
    shares = [render(0, index, kind=kind, split=0, side=SIDE).mask.mean() for index in range(12)]
    assert 0.02 < min(shares) and max(shares) < 0.6


def test_an_image_is_a_function_of_its_arguments() -> None:
    first = render(3, 7, kind="fish", split=0, side=SIDE)
    again = render(3, 7, kind="fish", split=0, side=SIDE)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    for other in (
        render(4, 7, kind="fish", split=0, side=SIDE),
        render(3, 8, kind="fish", split=0, side=SIDE),
        render(3, 7, kind="fish", split=1, side=SIDE),
    ):
        assert (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize("index", range(6))
def test_the_background_is_the_same_whatever_object_stands_in_front(index: int) -> None:
    one = render(0, index, kind="star", split=0, side=SIDE)
    two = render(0, index, kind="mug", split=0, side=SIDE)
    # Shadow and blur reach beyond the masks: a shift of 7 % and three sigma of 3 % of the side,
    # two pixels of blur.
    reach = 2 * int(np.ceil((0.07 + 3 * 0.03) * SIDE + 2)) + 1
    near = cv2.dilate((one.mask | two.mask).astype(np.uint8), np.ones((reach, reach)))
    far = near == 0
    assert far.mean() > 0.05
    assert np.abs(one.image.astype(int) - two.image)[far].max() <= 1
    assert (one.image != two.image)[near > 0].mean() > 0.1


def test_the_mask_covers_the_object_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bright object without shading on a black scene, no camera: the edge is at one half."""
    side = SIDE
    black = np.zeros((side, side, 3), np.float32)
    monkeypatch.setattr("preprocess.demo.render.background", lambda draw, side: black)
    monkeypatch.setattr("preprocess.demo.render._surface", lambda draw, scene: black + 1)
    monkeypatch.setattr("preprocess.demo.render._relief", lambda cover, light: black[..., 0] + 1)
    monkeypatch.setattr(
        "preprocess.demo.render._photograph",
        lambda picture, draw: np.rint(255 * picture).astype(np.uint8),
    )
    monkeypatch.setattr("preprocess.demo.shapes.DARK", 1.0)
    drawn = render(0, 1, kind="crescent", split=0, side=side)
    solid = drawn.mask & (cv2.erode(drawn.mask.astype(np.uint8), np.ones((5, 5))) == 0)
    edge = drawn.image[..., 0][solid]
    assert edge.min() >= 127  # at least half object, wherever no dark part lies
    assert (drawn.image[..., 0][~drawn.mask] < 128).all()


def test_classes_are_balanced_and_splits_apart() -> None:
    settings = DemoSettings(images=200, classes=4, side=64, seed=0)
    images = list(plan(settings))
    counts = Counter((split, kind) for split, _, kind in images)
    assert len(images) == 200 and len(counts) == 8
    assert {count for (split, _), count in counts.items() if split == 0} == {40}
    assert {count for (split, _), count in counts.items() if split == 1} == {10}


def test_the_folder_has_images_masks_and_a_marker(tmp_path: Path) -> None:
    settings = DemoSettings(images=24, classes=3, side=48, seed=1)
    make_demo_set(tmp_path / "source", settings, workers=2)
    files = {p.relative_to(tmp_path / "source").as_posix() for p in tmp_path.rglob("*.*g")}
    assert len(files) == 48
    for split, count in (("train", 20), ("val", 4)):
        names = [name for name in files if name.startswith(split)]
        assert len(names) == count
        assert {f"masks/{Path(name).with_suffix('.png')}" for name in names} <= files
    drawn = render(1, 3, kind=next(iter(SHAPES)), split=0, side=48)
    mask = Image.open(tmp_path / "source/masks/train" / next(iter(SHAPES)) / "000003.png")
    np.testing.assert_array_equal(np.asarray(mask) > 0, drawn.mask)

    # The same set is kept, another one replaces it, and a stranger's folder is not touched.
    witness = tmp_path / "source/train/witness.txt"
    witness.touch()
    make_demo_set(tmp_path / "source", settings, workers=2)
    assert witness.exists()
    make_demo_set(tmp_path / "source", DemoSettings(24, 2, 48, 1), workers=2)
    assert not witness.exists()
    (tmp_path / "source" / MARKER).unlink()
    with pytest.raises(DataError, match="is in the way"):
        make_demo_set(tmp_path / "source", settings, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
