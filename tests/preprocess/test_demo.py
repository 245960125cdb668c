"""The demo set: a function of its seed, exact masks, objects and scenes apart from each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harl_fast.demoset import IMAGES, SIDE_PX, scenes_of
from harl_fast.errors import DataError
from preprocess.demo import render as renderer
from preprocess.demo.make import MARKER, DemoSettings, make_demo_set, plan
from preprocess.demo.render import render
from preprocess.demo.scenes import SCENES
from preprocess.demo.shapes import SHAPES
from preprocess.demo.surfaces import SURFACES
from tests.preprocess.support import demo_image

SIDE, PAIR = 64, ("star", "mug")


def test_an_object_covers_its_share_and_stays_in_the_frame() -> None:
    assert SHAPES.keys() == SURFACES.keys() and len(SHAPES) == len(SCENES) == 10
    for index in range(200):
        mask = demo_image(index, seed=0, side=SIDE_PX).mask
        assert 0.15 <= mask.mean() <= 0.30, index
        assert not (mask[[0, -1]].any() or mask[:, [0, -1]].any()), index


def test_an_image_is_a_function_of_its_arguments() -> None:
    same = {"kind": "fish", "scene": "sea", "side": SIDE}
    first, again = (render(3, 7, split=0, **same) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    for other in (render(4, 7, split=0, **same), render(3, 8, split=0, **same),
                  render(3, 7, split=1, **same)):  # fmt: skip
        assert (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize("scene", SCENES)
def test_the_background_is_the_same_whatever_object_stands_in_front(scene: str) -> None:
    one, two = (
        render(0, 5, kind=kind, scene=scene, split=0, side=SIDE) for kind in ("star", "mug")
    )
    # Shadow and blur reach beyond the masks: a shift of 5 % and three sigma of 2.5 % of the side,
    # two pixels of blur.
    reach = 2 * int(np.ceil((0.05 + 3 * 0.025) * SIDE + 2)) + 1
    near = cv2.dilate((one.mask | two.mask).astype(np.uint8), np.ones((reach, reach)))
    far = near == 0
    assert far.mean() > 0.02
    assert np.abs(one.image.astype(int) - two.image)[far].max() <= 1
    assert (one.image != two.image)[near > 0].mean() > 0.1


@pytest.mark.parametrize("kind", SHAPES)
def test_pose_and_mask_are_the_same_whatever_scene_lies_behind(kind: str) -> None:
    drawn = [render(0, 3, kind=kind, scene=scene, split=0, side=SIDE) for scene in SCENES]
    assert len({each.mask.tobytes() for each in drawn}) == 1
    assert len({each.image.tobytes() for each in drawn}) == len(SCENES)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_mask_covers_the_object_exactly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A white object without shading on a black scene, no camera: the edge is at one half."""
    plane = np.zeros((SIDE, SIDE), np.float32)
    black = np.zeros((SIDE, SIDE, 3), np.float32)
    monkeypatch.setattr(renderer, "background", lambda draw, scene, side: black)
    monkeypatch.setattr(renderer, "_tints", lambda draw, scene: (black + 1, black + 1))
    monkeypatch.setattr(renderer, "_relief", lambda cover, light: plane + 1)
    monkeypatch.setattr(
        renderer, "_photograph", lambda picture, draw: np.rint(255 * picture).astype(np.uint8)
    )
    filled = renderer._filled
    monkeypatch.setattr(renderer, "_filled", lambda *arguments: (filled(*arguments)[0], plane + 1))
    for index in range(4):
        drawn = render(0, index, kind=kind, scene="sea", split=0, side=SIDE)
        # The brightness is the coverage, in 255ths.
        np.testing.assert_array_equal(drawn.image[..., 0] >= 128, drawn.mask)
        assert (drawn.image == 255).any() and (drawn.image == 0).any()


def test_pairs_are_balanced_in_both_splits() -> None:
    images = list(plan(DemoSettings(images=IMAGES, side=SIDE, seed=0)))
    for split, each in ((0, 30), (1, 10)):
        pairs = Counter((p.kind, p.scene) for p in images if p.split == split)
        assert len(pairs) == 100 and set(pairs.values()) == {each}


@pytest.mark.parametrize("count", [20, 333, 410])
def test_any_number_of_images_is_as_even_as_it_can_be(count: int) -> None:
    images = list(plan(DemoSettings(images=count, side=SIDE, seed=0)))
    assert len(images) == count
    for split in (0, 1):
        part = [p for p in images if p.split == split]
        for labels in ([p.kind for p in part], [p.scene for p in part],
                       [(p.kind, p.scene) for p in part]):  # fmt: skip
            counts = Counter(labels).values()
            full = 100 if isinstance(labels[0], tuple) else 10
            least = min(counts) if len(counts) == full else 0
            assert max(counts) - least <= 1


def test_the_folder_has_images_masks_and_a_marker(tmp_path: Path) -> None:
    source, settings = tmp_path / "source", DemoSettings(images=40, side=48, seed=1)
    make_demo_set(source, settings, workers=2)
    files = {p.relative_to(source).as_posix() for p in source.rglob("*.*g")}
    assert len(files) == 80
    for split, count in (("train", 30), ("val", 10)):
        names = sorted(name for name in files if name.startswith(split))
        assert len(names) == count
        assert {f"masks/{Path(name).with_suffix('.png')}" for name in names} <= files
        assert Counter(scenes_of(names)) == dict.fromkeys(SCENES, count // 10)
        assert Counter(name.split("/")[1] for name in names) == dict.fromkeys(SHAPES, count // 10)
    drawn = render(1, 13, kind="gear", scene="forest", split=0, side=48)
    mask = Image.open(source / "masks/train/gear/forest-000013.png")
    np.testing.assert_array_equal(np.asarray(mask) > 0, drawn.mask)

    # The same set is kept, another one replaces it, and a stranger's folder is not touched.
    witness = source / "train/witness.txt"
    witness.touch()
    make_demo_set(source, settings, workers=2)
    assert witness.exists()
    make_demo_set(source, DemoSettings(20, 48, 1), workers=2)
    assert not witness.exists()
    (source / MARKER).unlink()
    with pytest.raises(DataError, match="is in the way"):
        make_demo_set(source, settings, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_set_that_is_replaced_may_be_killed_as_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    make_demo_set(source, DemoSettings(20, 48, 0), workers=1)

    def die(folder: Path, ignore_errors: bool = False) -> None:
        if (folder / MARKER).exists():
            (folder / MARKER).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", die)
        make_demo_set(source, DemoSettings(20, 48, 1), workers=1)
    make_demo_set(source, DemoSettings(20, 48, 2), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
