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
