"""Mask files come back as written, foreign ones are told from them; descriptions and locks."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harl_fast.errors import DataError, HarlError
from preprocess.images.decode import Frame, read_mask
from preprocess.masks import parse_spec, tree
from preprocess.masks.controls import to_canvas
from preprocess.masks.maskfile import TEXT, Fingerprint, MadeMask, Record, read_made, write_made
from preprocess.work import stamp_of
from tests.preprocess.support import photo, save

RECORD = Record(
    key="k", image=Fingerprint(5, 6, 7), orientation=1, stand_in=True, problem="\N{SNOWMAN} melts"
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(640, 480), (333, 999), (7, 5), (128, 127), (3000, 24)])
def test_a_mask_comes_back_as_it_was(
    size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    drawn = np.random.default_rng(size[0]).random((128, 128)) < 0.4
    wanted = MadeMask(drawn, RECORD.model_copy(update={"orientation": orientation}))
    path, frame = tmp_path / "a" / "x.png", Frame(orientation, size)
    write_made(path, wanted, frame)
    found = read_made(path)
    assert found is not None
    assert found.record.model_copy(update={"pixels": 0}) == wanted.record
    np.testing.assert_array_equal(found.mask, wanted.mask)
    # A reader of any mask file turns it as it turns the image.
    plain = np.zeros((128, 128), np.bool_)
    plain[:40, :70] = True
    write_made(path, wanted._replace(mask=plain), frame)
    assert (to_canvas(read_mask(path, frame)) != plain).mean() < 0.02


def test_of_a_strip_the_mask_is_no_giant(tmp_path: Path) -> None:
    full = np.ones((128, 128), np.bool_)
    write_made(tmp_path / "x.png", MadeMask(full, RECORD), Frame(1, (1, 65_500)))
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (1, 128 * 128)
    found = read_made(tmp_path / "x.png")
    assert found is not None and found.mask.all()
    assert read_mask(tmp_path / "x.png", Frame(1, (1, 65_500))).all()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pixels": 1}', "[" * 20_000, '{"key": "k"}'])
def test_a_file_with_another_record_is_a_users_own(text: str, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(TEXT, text)
    Image.fromarray(np.ones((4, 4), np.bool_)).save(tmp_path / "x.png", pnginfo=info)
    assert read_made(tmp_path / "x.png") is None


@pytest.mark.parametrize("year", [1900, 2400])
def test_a_file_of_any_date_is_known_again(year: int, tmp_path: Path) -> None:
    """Nanoseconds since 1970 have more than 63 bits after 2262, where file systems go on."""
    image = save(photo(0), tmp_path / "x.jpg")
    seconds = int(datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc).timestamp())
    os.utime(image, ns=(seconds * 10**9, seconds * 10**9))
    found = Fingerprint.of(image)
    assert found.fits(image)
    assert np.array(stamp_of(image), np.int64).tolist() == list(found[:2])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", None),
        ("spec", 5),
        ("format", True),
        ("max_resolution", 512.5),
        ("max_resolution", None),
        ("frame", None),
        ("method", "full"),
        ("method.supervision", "none of it"),
        ("method.parameters", []),
        ("method.method", None),
        ("reading", "full"),
    ],
)
def test_a_description_of_another_kind_is_refused(tmp_path: Path, key: str, value: object) -> None:
    info = tree.describe(parse_spec("full"), max_resolution=64)
    *parents, last = key.split(".")
    node = info
    for part in parents:
        node = node[part]
    node[last] = value
    if value is None:
        del node[last]
    (tmp_path / tree.INFO).write_text(json.dumps(info))
    with pytest.raises(DataError, match=rf"masks.json: {key}.*Delete it and run"):
        tree.read_info(tmp_path)


def test_shards_may_run_at_once_unless_they_share_files(tmp_path: Path) -> None:
    with tree.locked_shard(tmp_path, (1, 2)), tree.locked_shard(tmp_path, (2, 2)):
        for shard in ((1, 2), (1, 1), (3, 4), (2, 3)):
            told = pytest.raises(HarlError, match=r"in use by|in common")
            with told, tree.locked_shard(tmp_path, shard):
                pass
    with tree.locked_shard(tmp_path, (1, 4)), tree.locked_shard(tmp_path, (2, 6)):
        pass  # chunks 0, 4, 8, ... and 1, 7, 13, ... never meet
    assert list(tmp_path.iterdir()) == []


def test_of_two_descriptions_at_once_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (tree.describe(parse_spec(name), max_resolution=64) for name in ("center", "full"))
    # The other came between this one's look and its writing, then before both.
    monkeypatch.setattr(tree, "write_new", lambda path, _: not path.write_text(json.dumps(two)))
    for _ in range(2):
        with pytest.raises(DataError, match="holds other masks"):
            tree.claim(tmp_path, one)
    assert tree.read_info(tmp_path) == json.loads(json.dumps(two))
