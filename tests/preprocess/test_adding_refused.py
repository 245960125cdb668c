"""Sets with a damaged report or manifest are refused before an image is added to them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image

from harl_fast.data.container.manifest import read_manifest, write_manifest
from harl_fast.errors import DataError
from tests.preprocess.support import contents, photo, save
from tests.preprocess.test_adding import data, grow, out, run

__all__ = ["data", "out"]  # fixtures


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is missing"),
        ("[]", "holds a list"),
        ('{"skipped": 5}', r"skipped: .*\(got 5\)"),
        ('{"skipped": [{"path": "a"}]}', r"skipped\.0\.reason: Field required"),
    ],
)
def test_a_report_that_cannot_be_continued_is_refused_first(
    data: Path, out: Path, text: str, told: str
) -> None:
    (out / "val.report.json").unlink()
    if text:
        (out / "val.report.json").write_text(text)
    grow(data, "class0", 1)
    before = contents_but(out, "val.report.json")
    with pytest.raises(DataError, match=rf"val\.report\.json.*{told}.*or write"):
        run(out, "--add", str(data))
    assert contents_but(out, "val.report.json") == before
    (out / "val.report.json").write_text('{"skipped": []}')  # as the message says
    run(out, "--add", str(data))


def contents_but(out: Path, name: str) -> dict[str, object]:
    return {key: value for key, value in contents(out).items() if key != name}


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("mask", "supervision", "none of it", "mask.supervision is 'none of it', none of none"),
        ("store", "range", "dark", "a range that cannot be: 'dark'"),
    ],
)
def test_a_manifest_with_words_of_another_meaning_is_refused(
    data: Path, out: Path, part: str, key: str, value: str, told: str
) -> None:
    known = read_manifest(out / "train.beton")
    changed = {part: {**getattr(known, part), key: value}}
    write_manifest(out / "train.beton", dataclasses.replace(known, **changed))
    grow(data, "class0", 1)
    with pytest.raises(DataError, match=told):
        run(out, "--add", str(data))


def test_images_that_are_there_under_other_names_are_told(
    data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when folders were renamed: each would be two samples, without a word."""
    moved = tmp_path / "moved" / "train" / "class0" / "2024"
    shutil.copytree(data / "train" / "class0", moved)
    grow(tmp_path / "moved", "class0", 1)
    run(out, "--add", str(tmp_path / "moved"), "--val", "0")
    told = capsys.readouterr().out
    assert "WARNING: 3 of 4 images that are added to train are there already under other" in told
    assert "names (train/class0/2024/0.jpg, ...)" in told
    grow(tmp_path / "more", "class0", 1, start=200)
    run(out, "--add", str(tmp_path / "more"), "--val", "0")
    assert "WARNING" not in capsys.readouterr().out


def test_what_is_in_the_way_of_an_addition_is_to_be_moved(data: Path, out: Path) -> None:
    """Another --out would be another set."""
    shutil.copytree(data, out, dirs_exist_ok=True)
    grow(data, "class0", 1)
    with pytest.raises(DataError, match=r"out/train is to hold the shards .*: move them away$"):
        run(out, "--add", str(data))
    with pytest.raises(DataError, match=r"lies inside --add .*; move the set to a folder outside"):
        run(out, "--add", str(out.parent))


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 3)])
def test_a_tiff_that_has_other_pages_now_is_no_new_image(
    data: Path, tmp_path: Path, before: int, now: int
) -> None:
    """Its pages' names are others then."""
    path, out = data / "train/class1/a.tif", tmp_path / "paged"

    def write(count: int) -> None:
        first, *rest = (Image.fromarray(photo(number)) for number in range(count))
        first.save(path, save_all=True, append_images=rest)

    save(photo(9), path.with_name("b#1"), format="PNG")
    write(before)
    run(out, "--data", str(data), "--pages", "all")
    grow(data, "class0", 1)
    run(out, "--add", str(data), "--pages", "all")
    there = contents(out)
    write(now)
    with pytest.raises(DataError, match=r"train images .*\(train/class1/a\.tif.*other contents"):
        run(out, "--add", str(data), "--pages", "all")
    assert contents(out) == there


def test_a_class_in_another_unicode_form_is_no_new_one(data: Path, out: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):
        save(photo(1), data.parent / name / "train" / name / "x.jpg")
    run(out, "--add", str(data.parent / "caf\u00e9"), "--new-classes", "--val", "0")
    with pytest.raises(DataError, match=r"'caf\\xe9' and .* has 'cafe\\u0301': two.*convmv"):
        run(out, "--add", str(data.parent / "cafe\u0301"), "--new-classes", "--val", "0")
