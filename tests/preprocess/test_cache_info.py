"""A cache of masks whose description or files are of another kind is refused, or not waited for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harl_fast.errors import DataError
from preprocess.masks import cache, parse_spec
from preprocess.masks.cachefile import DamagedError, read_masks
from preprocess.sources import Split


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", None),
        ("spec", 5),
        ("side", "128"),
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
    info = cache.describe(parse_spec("full"), max_resolution=64)
    *parents, last = key.split(".")
    node = info
    for part in parents:
        node = node[part]
    node[last] = value
    if value is None:
        del node[last]
    (tmp_path / cache.INFO).write_text(json.dumps(info))
    with pytest.raises(DataError, match=rf"masks.json: {key}.*Delete it and run"):
        cache.read_info(tmp_path)


@pytest.mark.timeout(30)
def test_a_pipe_among_the_masks_is_damage_and_not_waited_for(tmp_path: Path) -> None:
    info = cache.describe(parse_spec("full"), max_resolution=64)
    path = cache.file_path(tmp_path, "train", 0)
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="pipe"):
        read_masks(path, key=cache.key_of(info))
    split = Split(names=["train/a/1.jpg"], labels=[0], root=tmp_path)
    assert len(cache.CacheReader(tmp_path, split, info)) == 0
