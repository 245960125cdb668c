"""Generated pictures: masks are exact, halves are apart, the same call gives the same picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import composites as made
from benchmarks.composites import LEAST, MOST, Composite, composite, load_stamps, stamped
from harl_fast.errors import DataError
from tests.preprocess.support import save


def colour_side(found: Composite, *, near: int) -> float:
    """Return the share of pixels, ``near`` px and more from the outline, on the right side.

    Object and scene are single colours here, so their own brightness says which is which.
    """
    mask = found.mask.astype(np.uint8)
    kernel = np.ones((2 * near + 1,) * 2, np.uint8)
    sure = (cv2.erode(mask, kernel) == 1) | (cv2.dilate(mask, kernel) == 0)
    bright = found.image.mean(axis=2) > 128
    return float((bright == found.mask)[sure].mean())


def test_the_mask_is_where_the_object_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white object before a black scene: the picture itself tells the truth."""
    monkeypatch.setattr(made, "background", lambda _, side: np.zeros((side, side, 3), np.float32))
    monkeypatch.setattr(made, "_surface", lambda _, scene, side: np.ones_like(scene))
    monkeypatch.setattr(made, "_relief", lambda cover, _: np.ones_like(cover))
    for index in range(12):
        found = composite(index)
        assert LEAST <= found.mask.mean() <= MOST
        assert colour_side(found, near=2) == 1.0
        # The exposure is below 1 at times: half of the object's own level, not of 255.
        level = np.median(found.image[found.mask].mean(axis=1)) / 2
        assert ((found.image.mean(axis=2) > level) == found.mask).mean() > 0.997


def test_pictures_depend_on_index_and_seed_alone() -> None:
    first, again, other = composite(3, seed=1), composite(3, seed=1), composite(3, seed=2)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.image.shape == (*first.mask.shape, 3) and max(first.mask.shape) == 300
    assert not np.array_equal(first.mask, other.mask)
    assert composite(1, side_px=150).image.shape[:2] == (150, 112)


def cut_out(seed: int, *, colour: int) -> npt.NDArray[np.uint8]:
    """Return a disc with 4,000 colours about ``colour``; transparent pixels are bright green."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:120, :140] - np.array([60, 70])[:, None, None]
    rgba = np.zeros((120, 140, 4), np.uint8)
    rgba[..., :3] = np.clip(rng.normal(colour, 25, (120, 140, 3)), 0, 255)
    rgba[..., 3] = 255 * (np.hypot(x, y) < 55)
    rgba[rgba[..., 3] == 0, :3] = (0, 255, 0)
    return rgba


def test_cut_outs_lie_where_their_masks_say(tmp_path: Path) -> None:
    for number in range(4):  # even: bright before dark, odd: dark before bright
        save(cut_out(number, colour=(200, 50)[number % 2]), tmp_path / f"s/{number}.png")
        photo = np.full((90, 130, 3), (30, 220)[number % 2], np.uint8)
        save(photo, tmp_path / f"p/{number}.png")
    save(np.full((120, 140, 3), 9, np.uint8), tmp_path / "s/opaque.png")
    save(np.repeat(cut_out(0, colour=9)[..., 3:], 4, axis=2), tmp_path / "s/one colour.png")
    stamps, photos = load_stamps(tmp_path / "s"), sorted((tmp_path / "p").glob("*.png"))
    assert len(stamps) == 4
    for index in range(6):
        found = stamped(index, stamps, photos, seed=5)
        flipped = Composite(255 - found.image, found.mask) if index % 2 else found
        assert LEAST <= found.mask.mean() <= MOST
        assert colour_side(flipped, near=2) > 0.999
        # Noise gives every opaque pixel some green of its own, but no bleeding gives them all.
        band = cv2.dilate(found.mask.astype(np.uint8), np.ones((5, 5))) == 1
        green = found.image[..., 1].astype(int) - found.image[..., [0, 2]].mean(axis=2)
        assert abs(green[band].mean()) < 3
    with pytest.raises(DataError, match="0 photo-like cut-outs"):
        load_stamps(tmp_path / "p")
