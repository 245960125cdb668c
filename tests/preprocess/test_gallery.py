"""The gallery of masks: who comes first, what its tiles show, where its pictures come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from harl_fast.drawing import MARGIN_PX, TILE_PX
from harl_fast.errors import ConfigError, DataError
from preprocess import beton, preview
from preprocess.images.arrays import Mask, Pixels
from preprocess.masks.gallery import Shown, from_container, from_folder, selected, sheet, shown
from preprocess.masks.selftrained.score import colour_separation
from tests.betons import plain_item, write_beton
from tests.preprocess.support import save
from tests.sheets import texts_drawn


def scene(seed: int, *, left: int = 16) -> tuple[Pixels, Mask]:
    """Return a red square on a blue ground, 48 x 64, and where it is."""
    mask = np.zeros((48, 64), np.bool_)
    mask[12:36, left : left + 24] = True
    noise = np.random.default_rng(seed).integers(0, 12, (48, 64, 3))
    return (np.where(mask[..., None], (200, 40, 30), (20, 60, 180)) + noise).astype(np.uint8), mask


def picture(name: str, figure: float, *, truth: bool, tiles: int = 3) -> Shown:
    shade = np.full((TILE_PX, TILE_PX, 3), round(200 * figure), np.uint8)
    return Shown(name, figure, truth, f"says {figure}", {f"tile {n}": shade for n in range(tiles)})


def shades(found: Pixels) -> list[int]:
    """Return the greys of the first tiles of `picture` on a sheet, from its top to its foot."""
    column = found[:, MARGIN_PX + TILE_PX // 2, 0].astype(int)
    runs = np.split(column, np.flatnonzero(np.diff(column)) + 1)
    return [int(run[0]) for run in runs if len(run) == TILE_PX]


def test_worst_then_typical_then_best_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = (0.5, 0.1, 0.9, 0.3, 0.7, 0.6, 0.2)
    pictures = [picture(str(n), figure, truth=True) for n, figure in enumerate(figures)]
    for count, expected in (
        (1, {"worst": [0.1]}),
        (2, {"worst": [0.1], "best": [0.9]}),
        (3, {"worst": [0.1], "typical": [0.5], "best": [0.9]}),
        (6, {"worst": [0.1, 0.2], "typical": [0.3, 0.5], "best": [0.9, 0.7]}),
        (99, {"worst": [0.1, 0.2, 0.3], "typical": [0.5, 0.6], "best": [0.9, 0.7]}),
    ):
        groups = selected(pictures, count=count)
        assert {name: [one.figure for one in group] for name, group in groups.items()} == expected
    assert [one.name for one in selected(pictures[:1] * 2, count=2)["best"]] == ["0"]
    said = texts_drawn(monkeypatch)
    assert shades(sheet(pictures, count=4, title="Masks of x")) == [20, 40, 100, 180]
    assert said[0] == "Masks of x" and {"outline of the mask", "outline of the truth"} < {*said}
    assert {"right", "too much", "missing", "in neither", "tile 0", "tile 1", "tile 2"} < {*said}
    assert said[-7:] == [
        "worst, of 7 by IoU with the truth", "says 0.1   1", "says 0.2   6",
        "typical, of 7 by IoU with the truth", "says 0.5   0",
        "best, of 7 by IoU with the truth", "says 0.9   2",
    ]  # fmt: skip
    with pytest.raises(DataError, match="no picture"):
        sheet([], count=2)


def test_pictures_without_truth_do_not_mix_with_those_with(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [picture("a", 0.5, truth=True, tiles=4), picture("b", 0.01, truth=False)]
    assert shades(sheet(mixed, count=4)) == [100]
    said = texts_drawn(monkeypatch)
    assert shades(sheet(mixed[1:], count=4)) == [2]
    assert not {"outline of the truth", "missing"} & {*said}


def test_tiles_show_mask_map_and_what_was_missed() -> None:
    image, truth = scene(0)
    mask = np.roll(truth, 8, axis=1)
    soft = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, axis=0)
    one = shown("a.jpg", image, mask, soft, truth)
    assert one.figure == pytest.approx(16 / 32) and one.has_truth and len(one.tiles) == 4
    scale = TILE_PX / 64
    y = round(24 * scale)
    inside, beside, missed = (round(x * scale) for x in (30, 44, 20))
    outlined, grey, cut, compared = one.tiles.values()
    assert (
        abs(int(grey[y, inside, 0]) - 255 * 30 / 64) < 8 and grey[y, missed, 0] < grey[y, beside, 0]
    )
    assert cut[y, inside, 0] > 180 and tuple(cut[y, 5]) == (120, 40, 140)
    hit, added, lost = (compared[y, x].astype(int) for x in (inside, beside, missed))
    assert hit.min() > 200 and added[0] > added[2] + 100 and lost[2] > lost[0] + 100
    assert not compared[y, 5].any()  # in neither
    yellow = (outlined == (255, 220, 0)).all(axis=2)
    assert yellow[y].any() and abs(np.flatnonzero(yellow[y]).min() - 24 * scale) <= 2
    assert not shown("a.jpg", image, mask).has_truth and len(shown("a", image, mask).tiles) == 2


def test_colours_apart_are_told_from_colours_alike() -> None:
    image, mask = scene(1)
    assert colour_separation(image, mask) > 0.95
    assert colour_separation(image, np.roll(mask, 24, axis=1)) < 0.8
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 5)
    halves = np.zeros((64, 64), np.bool_)
    halves[:, :32] = True
    assert colour_separation(smooth, halves) < 0.5
    for whole in (halves | True, halves & False):
        assert colour_separation(smooth, whole) == 0.0


def find_red(images: Sequence[Pixels]) -> list[tuple[Mask, npt.NDArray[np.float32]]]:
    softs = [(rgb[..., 0] / 255).astype(np.float32) for rgb in images]
    return [(soft > 0.4, soft) for soft in softs]


def test_a_folder_is_read_with_its_truth_and_what_fails_is_named(tmp_path: Path) -> None:
    for number in range(3):
        image, truth = scene(number, left=8 * number)
        save(image, tmp_path / f"in/c/{number}.png")
        levels = truth.astype(np.uint8) * (255 if number else 1)  # 0 and 1, as some masks have it
        save(levels, tmp_path / f"truth/c/{number}.png")
    (tmp_path / "in/c/broken.jpg").write_bytes(b"no picture")
    save(scene(9)[0], tmp_path / "in/untold.png")
    found, failed = from_folder(tmp_path / "in", find_red, truth=tmp_path / "truth", most=99)
    assert [(one.name, one.has_truth) for one in found] == [
        ("c/0.png", True), ("c/1.png", True), ("c/2.png", True), ("untold.png", False),
    ]  # fmt: skip
    assert all(one.figure == 1.0 for one in found[:3])
    assert list(failed) == ["c/broken.jpg"]
    few, _ = from_folder(tmp_path / "in", find_red, truth=None, most=2)
    assert [one.name for one in few] == ["c/0.png", "untold.png"]
    turned = Image.Exif()
    turned[0x0112] = 6
    save(levels, tmp_path / "truth/c/2.png", exif=turned)
    with pytest.raises(DataError, match=r"true mask .*2.png cannot .* EXIF orientation 6"):
        from_folder(tmp_path / "in", find_red, truth=tmp_path / "truth", most=99)
    with pytest.raises(DataError, match="neither"):
        from_folder(tmp_path / "none", find_red, truth=None, most=2)


def test_a_container_shows_its_stored_masks(tmp_path: Path) -> None:
    path = write_beton(tmp_path / "train.beton", plain_item, count=12)
    found = list(from_container(path, truth=None, most=5))
    assert len(found) == 5 and all(len(one.tiles) == 2 for one in found)
    image, mask, _ = plain_item(0)
    assert found[0].figure == pytest.approx(colour_separation(image, mask), abs=0.15)


def test_the_program_draws_a_folder_and_a_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = texts_drawn(monkeypatch)
    monkeypatch.chdir(tmp_path)  # titles too long for the sheet lose their middle
    for number in range(2):
        save(scene(number)[0], tmp_path / f"in/{number}.jpg", quality=95)
    out = tmp_path / "sheet.png"
    command = ["--masks", "in", "--out", str(out), "--mask-method", "center"]
    assert preview.main(command) == 0
    assert "colour separation of 2 images" in capsys.readouterr().out
    assert said[0] == "Masks of in by center"
    assert {"image with outlines", "soft map: black 0, white 1", "inside of the mask"} < {*said}
    assert {text.split()[-1] for text in said if text.startswith("separation")} == {
        "0.jpg", "1.jpg",
    }  # fmt: skip
    said.clear()
    write_beton(tmp_path / "train.beton", plain_item, count=4)
    assert preview.main(["--masks", "train.beton", "--out", str(out), "--count", "4"]) == 0
    assert said[0] == "Masks stored in train.beton" and "soft map: black 0, white 1" not in said
    assert sum(text.startswith("separation") for text in said) == 4
    with pytest.raises(ConfigError, match="centre"):
        preview.main([*command[:-1], "centre"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.beton", "--masks", "--stats"], "--stats: belongs to views"),
        (["photos", "--masks", "--set", "seed=1"], "--set: belongs to views"),
        (["train.beton", "--ids", "1,2", "--count", "9"], "--count: the samples are those of --id"),
        (["train.beton", "--truth", "x"], "--truth: belongs to --masks"),
        (["train.beton", "--mask-method", "center"], "--mask-method: belongs to --masks"),
        (["train.beton", "--masks", "--mask-method", "center"], "a container has its masks"),
        (["train.beton", "--masks", "--range", "full"], "a container has its masks"),
    ],
)
def test_options_of_what_is_not_drawn_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        preview.parse(words)
    assert told in capsys.readouterr().err
    assert preview.parse(["photos", "--masks", "--mask-method", "center"]).masks
    assert preview.parse(["train.beton", "--stats", "--ids", "3"]).stats


def test_an_image_on_which_a_users_method_fails_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "picky.py").write_text(
        "import numpy as np\n"
        "def find(rgb):\n"
        "    if rgb.shape[1] == 80:\n"
        "        raise ValueError('too wide')\n"
        "    return np.eye(64, dtype=np.float32)\n"
    )
    for name, width in (("a", 64), ("b", 80), ("c", 64)):
        save(np.zeros((48, width, 3), np.uint8), tmp_path / "in" / f"{name}.png")
    options = ["--masks", "--mask-method", "picky.find", "--out", str(tmp_path / "x.png")]
    assert preview.main([str(tmp_path / "in"), *options]) == 0
    told = capsys.readouterr().out
    assert "left out: b.png: picky.find: ValueError: too wide" in told and "of 2 images" in told


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("is_shown", [False, True])
def test_the_truth_lies_as_the_file_or_as_its_image_is_shown(
    tmp_path: Path, orientation: int, is_shown: bool
) -> None:
    image, truth = scene(0, left=4)
    turns = {1: 0, 3: 2, 6: 1}[orientation]  # quarters against the clock, which a viewer undoes
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(np.rot90(image, turns), tmp_path / "in/0.png", exif=exif)
    own = truth if is_shown and orientation == 6 else np.rot90(truth, turns)
    save(own.astype(np.uint8) * 255, tmp_path / "truth/0.png")
    (found,), _ = from_folder(tmp_path / "in", find_red, truth=tmp_path / "truth", most=9)
    assert found.has_truth and found.figure == 1.0


def test_a_truth_of_other_proportions_than_its_image_is_refused(tmp_path: Path) -> None:
    """As of a photo that is stored upright, and was not so in its file."""
    path = write_beton(tmp_path / "train.beton", plain_item, count=1)
    height, width = plain_item(0)[0].shape[:2]
    name = path.with_suffix(".names.txt").read_text().split("\n")[0]
    save(np.eye(2 * width, height, dtype=np.uint8), tmp_path / f"truth/{name}.png")
    with pytest.raises(DataError, match=r"true mask .* cannot be used: .* as its image is shown"):
        list(from_container(path, truth=tmp_path / "truth", most=5))


def test_each_page_has_a_truth_of_its_own(tmp_path: Path) -> None:
    scenes = [scene(number, left=8 * number) for number in range(2)]
    first, second = (Image.fromarray(image) for image, _ in scenes)
    for folder in "ab":
        (tmp_path / "in/train" / folder).mkdir(parents=True)
        path = tmp_path / "in/train" / folder / "x.tif"
        first.save(path, save_all=True, append_images=[second])
        for page, (_, truth) in enumerate(scenes, start=1):
            save(truth.astype(np.uint8), tmp_path / f"truth/train/{folder}/x#{page}.png")
    masks = ["--masks", str(tmp_path / "truth"), "--pages", "all", "--val", "0"]
    out = str(tmp_path / "out")
    assert beton.main(["--data", str(tmp_path / "in"), *masks, "--out", out]) == 0
    found = list(from_container(tmp_path / "out/train.beton", truth=tmp_path / "truth", most=9))
    assert len(found) == 4 and all(one.has_truth and one.figure > 0.9 for one in found)
