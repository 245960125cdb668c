"""Every reader of small files answers broken ones in one short line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from harl_fast.config import load_config
from harl_fast.data.container.manifest import read_manifest, read_sums
from harl_fast.engine.config import read_engine_file
from harl_fast.errors import HarlError
from preprocess.demo.make import MARKER, DemoSettings, make_demo_set
from preprocess.masks.selftrained.network import load_network
from preprocess.masks.tree import INFO, read_info

BROKEN = {
    "empty": b"",
    "binary": bytes(range(256)) * 4,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "Latin-1": '{"a": "ä"}'.encode("latin-1"),
    "NUL": b'{"a": "\0"}',
    "deep": b'{"a": ' + b"[" * 20_000,
    "closed deep": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "infinity": b'{"a": 1e999}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no keys": b"{}",
    "null values": b'{"format": null, "count": null, "method": null, "side": null, "recipe": null}',
    "a key twice": b'{"a": 1, "a": 2}',
    "a large value": b'{"a": "' + b"x" * 60_000 + b'", "format": [1]}',
    "an escape": b'{"\\u001b[31m": 1}',
}
PLAIN_OBJECT = {"no keys"}
"""What is no fault for a reader that has a default for each key."""


def demo_marker(path: Path) -> None:
    folder = path.parent / "source"
    folder.mkdir()
    path.rename(folder / MARKER)
    make_demo_set(folder, DemoSettings(20, 32, 0), workers=1)


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "configuration": ("config.yaml", lambda path: load_config(str(path))),
    "engine file": ("engine.json", read_engine_file),
    "manifest": ("train.json", lambda path: read_manifest(path.with_suffix(".beton"))),
    "made masks": (INFO, lambda path: read_info(path.parent)),
}


def check(error: pytest.ExceptionInfo[HarlError], name: str) -> None:
    message = str(error.value)
    assert name in message
    assert all(line.isprintable() for line in message.split("\n"))
    assert len(message) < 800


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("reader", READERS)
def test_a_broken_file_is_one_line(reader: str, content: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    if reader == "configuration" and content in PLAIN_OBJECT:
        return
    (tmp_path / name).write_bytes(BROKEN[content])
    with pytest.raises(HarlError) as caught:
        read(tmp_path / name)
    check(caught, name)


@pytest.mark.parametrize("content", sorted({*BROKEN} - {"no keys", "null values", "an escape"}))
def test_a_broken_marker_of_the_demo_set_is_one_line(content: str, tmp_path: Path) -> None:
    if content == "a large value":
        return  # sound, of another set: made anew
    (tmp_path / "x").write_bytes(BROKEN[content])
    with pytest.raises(HarlError, match="is made anew") as caught:
        demo_marker(tmp_path / "x")
    check(caught, MARKER)


NET = {"format": "harl_fast masks 1"}
SIZES = {"side": 32, "widths": [8, 8], "depth": 1, "lateral": 8, "top": 8, "members": 1}
HEADERS = {
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "deep": "[" * 20_000,
    "no architecture": json.dumps(NET),
    "null sizes": json.dumps({**NET, "architecture": None}),
    "a list of sizes": json.dumps({**NET, "architecture": [1]}),
    "no widths": json.dumps({**NET, "architecture": {**SIZES, "widths": None}}),
    "terabytes": json.dumps({**NET, "architecture": {**SIZES, "widths": [10**6] * 6}}),
    "negative": json.dumps({**NET, "architecture": {**SIZES, "depth": -1}}),
    "text": json.dumps({**NET, "architecture": {**SIZES, "side": "x" * 10**5}}),
    "another format": json.dumps({"format": "x" * 10**5}),
    "other tensors": json.dumps({**NET, "architecture": SIZES}),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_broken_header_of_a_mask_network_is_one_line(header: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(save({"a": np.zeros(3, np.float32)}, {"harl_fast": HEADERS[header]}))
    with pytest.raises(HarlError) as caught:
        load_network(path)
    check(caught, "net.safetensors")


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_mask_network_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(BROKEN[content])
    with pytest.raises(HarlError) as caught:
        load_network(path)
    check(caught, "net.safetensors")


class Described:
    """A manifest as far as `read_sums` looks at it."""

    def __init__(self, sha256: str) -> None:
        self.sums_sha256, self.count = sha256, 2


@pytest.mark.parametrize(
    "array",
    [np.array([{"a": 1}], object), np.zeros((2, 2), "f8"), np.uint32(3), None],
    ids=["objects", "floats", "a number", "no array"],
)
def test_checksums_of_another_kind_are_refused(array: Any, tmp_path: Path) -> None:
    from harl_fast.files import sha256_file

    path = tmp_path / "train.sums.npy"
    if array is None:
        path.write_bytes(b"junk")
    else:
        np.save(path, array, allow_pickle=True)
    described: Any = Described(sha256_file(path))
    with pytest.raises(HarlError, match=r"train\.sums\.npy"):
        read_sums(tmp_path / "train.beton", described)
