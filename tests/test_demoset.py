"""Names of the demo set: scenes come back from samples' names, other sets are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harl_fast.demoset import IMAGES, SIDE_PX, holds, name_of, scenes_of, set_name
from harl_fast.errors import DataError
from preprocess.demo.scenes import SCENES
from preprocess.demo.shapes import SHAPES

WANTED = set_name(IMAGES, SIDE_PX, seed=0)


def containers(folder: Path, train: str, val: str) -> Path:
    """Write two manifests that say where the images come from, and nothing else."""
    for split, source in (("train", train), ("val", val)):
        (folder / f"{split}.json").write_text(json.dumps({"source": source}))
    return folder


def test_the_scene_comes_back_from_every_name() -> None:
    pairs = [(kind, scene) for kind in SHAPES for scene in SCENES]
    names = [name_of(*pair, 123 * number) for number, pair in enumerate(pairs)]
    assert names[0] == "crescent/autumn-000000" and len(set(names)) == 100
    expected = [scene for _, scene in pairs]
    assert scenes_of(names) == expected
    assert scenes_of(f"train/{name}.jpg" for name in names) == expected
    assert scenes_of(f"source/val/{name}.png" for name in names) == expected


@pytest.mark.parametrize("name", ["train/cat/1.jpg", "fish/sea.jpg", "sea-000001.jpg", "", "a/-1"])
def test_another_name_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match=r"says no scene.*make demo"):
        scenes_of(["train/fish/sea-000001.jpg", name])


def test_a_set_is_known_by_all_that_decides_its_pixels() -> None:
    names = {
        set_name(*size, seed=seed) for size in ((400, 96), (400, 64), (500, 96)) for seed in (0, 1)
    }
    assert len(names) == 6


def test_only_this_very_set_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not holds(tmp_path / "none", WANTED)
    assert holds(containers(tmp_path, WANTED, WANTED), WANTED)
    (tmp_path / "val.json").unlink()
    assert not holds(tmp_path, WANTED)  # a conversion that was cut short
    assert capsys.readouterr().out == ""
    for older in ("generated, seed 0", set_name(400, SIDE_PX, seed=0)):
        assert not holds(containers(tmp_path, WANTED, older), WANTED)
        said = capsys.readouterr().out
        assert f"another demo set ({older})" in said and "drawn anew" in said


def test_other_images_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'my photos', no demo set: give another folder"):
        holds(containers(tmp_path, "my photos", "my photos"), WANTED)
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json.*If .* holds a demo set, delete it"):
        holds(tmp_path, WANTED)


def test_a_large_set_of_other_images_is_not_called_damaged(tmp_path: Path) -> None:
    manifest = {"source": "photos", "classes": [f"class {number}" for number in range(20_000)]}
    (tmp_path / "train.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="holds 'photos', no demo set: give another folder"):
        holds(tmp_path, WANTED)


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_split_of_other_images_is_not_drawn_over(tmp_path: Path, split: str) -> None:
    (tmp_path / f"{split}.json").write_text('{"source": "photos"}')
    with pytest.raises(DataError, match="holds 'photos', no demo set"):
        holds(tmp_path, WANTED)
    (tmp_path / f"{split}.json").write_text(json.dumps({"source": WANTED}))
    assert not holds(tmp_path, WANTED)
