"""How files are read reaches samples, masks and records alike; any name reaches files and texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.reader import read_samples
from harl_fast.errors import one_line
from preprocess import beton
from preprocess.images.reading import CONVERTED, FEW_LEVELS
from preprocess.masks.__main__ import main as masks_main
from preprocess.masks.registry import method_facts, parse_spec
from preprocess.masks.tree import INFO
from tests.preprocess.support import image_folder, photo, save
from tests.preprocess.test_colours import WIDE

UGLY = "no utf-8 \udcff, a\nline and \x1b[31m red " + "x" * 200
"""A name of 245 bytes, 255 are allowed."""


def write(data: Path, out: Path, *options: str) -> None:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", "16", "--workers", "1"]
    assert beton.main([*fixed, *options]) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a dark 16-bit grey and a wide-gamut image, and a class that does not read."""
    root = image_folder(tmp_path / "set")
    grey = photo(1)[..., 0].astype(np.uint16)
    save(grey, root / "train/class0/deep.png")
    save(photo(2), root / "train/class1/wide.png", icc_profile=WIDE)
    (root / "train/class2").mkdir()
    (root / "train/class2/broken.jpg").write_bytes(b"no image")
    return root


def test_range_and_profiles_reach_pixels_masks_and_manifest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, out = tmp_path / "masks", tmp_path / "out"
    choice = ["--range", "0:255", "--mask-method", "heuristic"]
    assert masks_main(["--data", str(folder), "--out", str(masks), *choice]) == 0
    info = json.loads((masks / INFO).read_text())
    assert info["reading"] == {"range": "0:255", "icc": True}
    write(folder, out, *choice, "--masks", str(masks), "--store", "raw")
    shown = capsys.readouterr().out
    assert f"{CONVERTED}: 1 files" in shown and "the masks were made" not in shown
    assert (
        "class class2 is lost: none of its 1 files could be read (first: train/class2/bro" in shown
    )
    manifest = read_manifest(out / "train.beton")
    facts = manifest.store
    assert (facts["range"], facts["icc"], facts["remarks"]) == ("0:255", True, {CONVERTED: 1})
    place = (out / "train.names.txt").read_text().splitlines().index("train/class0/deep.png")
    (stored,) = read_samples(out / "train.beton", [place])
    np.testing.assert_array_equal(stored.image[..., 0], photo(1)[..., 0])

    write(folder, tmp_path / "fresh", *choice, "--store", "raw")
    assert read_manifest(tmp_path / "fresh" / "train.beton").beton_sha256 == manifest.beton_sha256
    capsys.readouterr()
    write(folder, tmp_path / "other", "--masks", str(masks), "--no-icc", "--range", "full")
    assert "the masks were made of files read as" in capsys.readouterr().out
    other = read_manifest(tmp_path / "other" / "train.beton").store
    assert (other["range"], other["icc"], other["remarks"]) == ("full", False, {FEW_LEVELS: 1})


def test_any_name_of_folders_and_files_is_written_escaped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out, masks = (tmp_path / f"{part}{UGLY}" for part in ("data", "out", "mask"))
    image_folder(data)
    (data / "train/class0/0.jpg").rename(data / f"train/class0/{UGLY}.jpg")
    (data / f"train/class0/b{UGLY}.jpg").touch()
    arguments = ["--data", str(data), "--out", str(masks), "--workers", "1"]
    assert masks_main(arguments) == 0
    assert masks_main(arguments) == 0  # all is read again and kept
    printed = capfd.readouterr().out
    assert " there before" in printed
    write(data, out, "--masks", str(masks))
    told = capfd.readouterr()
    lines = f"{printed}{told.out}{told.err}".splitlines()
    assert any("images/s: " in line and one_line(str(out)) in line for line in lines)
    assert not [line for line in lines if line.startswith("line and")]
    manifest = read_manifest(out / "train.beton")
    assert manifest.source == one_line(data.name)
    assert manifest.mask["fallbacks"] == 0
    (skipped,) = json.loads((out / "train.report.json").read_text())["skipped"]
    assert skipped["path"] == one_line(f"train/class0/b{UGLY}.jpg")
    assert one_line(f"train/class0/{UGLY}.jpg") in (out / "train.names.txt").read_text()


def test_a_methods_file_is_recorded_by_an_escaped_name() -> None:
    facts = method_facts(parse_spec("png:folder\udcff"))
    assert facts["parameters"]["folder"] == r"folder\udcff"
