"""What is said of containers that were just written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocess import beton
from tests.preprocess.support import image_folder, photo, save


@pytest.mark.parametrize(("value", "told"), [(128, True), (1, True), (0, False)])
def test_mask_files_that_are_full_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: int, told: bool
) -> None:
    data = image_folder(tmp_path / "data", classes=2, train=1, val=1)
    for path in data.rglob("*.jpg"):
        save(photo(1), path, quality=90)
        mask = np.full((48, 64), value, np.uint8)
        save(mask, (tmp_path / "masks" / path.relative_to(data)).with_suffix(".png"))
    fixed = ["--data", str(data), "--out", str(tmp_path / "out"), "--mask-size", "16"]
    assert beton.main([*fixed, "--workers", "1", "--masks", str(tmp_path / "masks")]) == 0
    said = "note: 100.0% of the masks are full, as if there were none: in mask files 0 is"
    assert capsys.readouterr().out.count(said) == 2 * told


def test_a_folder_within_a_class_that_loses_all_its_files_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = image_folder(tmp_path / "data", classes=3, train=2, val=1)
    for place in ("class0/sub", "class1/other", "class2"):
        for path in (data / "train" / place).glob("*.jpg"):
            path.unlink()
        for number in range(2):
            (data / "train" / place).mkdir(exist_ok=True)
            (data / "train" / place / f"{number}.jpg").write_bytes(b"damaged")
    save(photo(1), data / "train/class1/other/sound.jpg")
    fixed = ["--data", str(data), "--out", str(tmp_path / "out"), "--mask-size", "16"]
    assert beton.main([*fixed, "--workers", "1", "--mask-method", "full"]) == 0
    lost = [line for line in capsys.readouterr().out.splitlines() if "is lost" in line]
    assert [line.split(" is lost")[0].strip() for line in lost] == [
        "class class2", "folder train/class0/sub"
    ]  # fmt: skip
