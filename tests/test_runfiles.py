"""Which folders programs may replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from harl_fast.errors import OutputError
from harl_fast.runfiles import check_folders, check_named


@pytest.mark.parametrize("name", [".", "..", "/", "", "sub/..", "../.."])
def test_the_current_folder_and_those_above_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "a" / "b"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match=r"--out .* is the folder that this runs in"):
        check_named(Path(name), option="--out")
    with pytest.raises(OutputError, match=r"--run .* is the folder that this runs in"):
        check_folders({"--run": Path(name)}, base=here)
    check_named(Path("sub"), option="--out")
    check_named(here / "new", option="--out")


@pytest.mark.parametrize(
    ("run", "out", "told"),
    [
        ("x", "x", r"--out x lies in --run x"),
        ("x", "x/y", r"--out x/y lies in --run x"),
        ("x/y", "x", r"--run x/y lies in --out x"),
        ("x", "data", r"--out data holds the images"),
        ("x", "file", r"--out .*file is not a folder"),
    ],
)
def test_folders_that_would_take_each_others_files_are_refused(
    tmp_path: Path, run: str, out: str, told: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=told):
        check_folders(
            {"--run": Path(run), "--out": Path(out)}, data=tmp_path / "data", base=tmp_path
        )
    assert sorted(tmp_path.iterdir()) == before
    check_folders({"--run": Path("x"), "--out": Path("y")}, data=tmp_path / "data", base=tmp_path)
