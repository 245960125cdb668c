"""A container is opened only with its own manifest, and damage is named before FFCV sees it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ffcv.types import FieldDescType, HeaderType

from harl_fast.data.container.index import check_container
from harl_fast.data.container.manifest import (
    find_container,
    manifest_path,
    merge_manifests,
    names_path,
    read_manifest,
    sample_name,
    write_manifest,
    write_names,
)
from harl_fast.errors import DataError
from harl_fast.files import sha256_file
from harl_fast.textfile import tree_sha256
from tests.betons import plain_item, write_beton


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("beton") / "train.beton", plain_item, count=8)


@pytest.fixture
def beton(original: Path, tmp_path: Path) -> Path:
    for path in original.parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / original.name


def change_header(beton: Path, **values: int) -> None:
    header = np.fromfile(beton, HeaderType, count=1)
    for name, value in values.items():
        header[name] = value
    with open(beton, "r+b") as stream:
        stream.write(header.tobytes())


def test_a_manifest_reads_as_it_was_written(beton: Path) -> None:
    manifest = dataclasses.replace(read_manifest(beton), source="photos", skipped=3)
    write_manifest(beton, manifest)
    assert read_manifest(beton) == manifest
    check_container(beton, manifest)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["zero", "one"]),
        ("split", "val"),
        ("mask", {"size": 8}),
        ("skipped", 1),
        ("store", {"kind": "raw"}),
    ],
)
def test_an_edited_manifest_is_refused(beton: Path, key: str, value: object) -> None:
    path = manifest_path(beton)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(tree.items()))))  # another order is no other content
    read_manifest(beton)
    path.write_text(json.dumps({**tree, key: value}))
    with pytest.raises(
        DataError, match=r"train\.json was changed after it was written.*make beton"
    ):
        read_manifest(beton)


def test_a_split_under_the_others_name_is_refused(beton: Path) -> None:
    """Else a run would train on the images that it is judged by."""
    write_manifest(beton, dataclasses.replace(read_manifest(beton), split="val"))
    with pytest.raises(DataError, match="of the split val by its manifest"):
        read_manifest(beton)
    manifest_path(beton).rename(beton.with_name("mine.json"))
    assert read_manifest(beton.with_name("mine.beton")).split == "val"


def test_a_manifest_from_before_seals_opens(beton: Path) -> None:
    path, known = manifest_path(beton), read_manifest(beton)
    tree = json.loads(path.read_text())
    del tree["manifest_sha256"]
    path.write_text(json.dumps(tree))
    assert read_manifest(beton) == known


def test_a_missing_manifest_says_how_to_get_one(beton: Path) -> None:
    manifest_path(beton).unlink()
    with pytest.raises(DataError, match=r"train\.json is missing.*make beton"):
        read_manifest(beton)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", "many", "count"),
        ("classes", None, "classes"),
        ("format_version", 99, "format 99"),
    ],
)
def test_a_wrong_entry_is_named(beton: Path, key: str, value: object, message: str) -> None:
    path = manifest_path(beton)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match=message):
        read_manifest(beton)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_file_that_is_no_manifest_is_refused(beton: Path, text: str) -> None:
    manifest_path(beton).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.json"):
        read_manifest(beton)


def test_a_container_that_is_gone_or_of_another_length_is_refused(beton: Path) -> None:
    manifest = read_manifest(beton)
    whole = beton.read_bytes()
    for content in (whole[:-24], whole[: len(whole) // 2], whole + b"\0", b""):
        beton.write_bytes(content)
        with pytest.raises(DataError, match="bytes, its manifest says"):
            check_container(beton, manifest)
    beton.unlink()
    with pytest.raises(DataError, match="is missing"):
        check_container(beton, manifest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 7}, "FFCV format 7"),
        ({"num_samples": 10**9}, "1000000000 samples"),
        ({"num_fields": 2}, "2 fields"),
        ({"alloc_table_ptr": 10**12}, "allocation table"),
        ({"alloc_table_ptr": 0}, "allocation table"),
    ],
)
def test_a_changed_header_is_refused(beton: Path, values: dict[str, int], message: str) -> None:
    manifest = read_manifest(beton)
    change_header(beton, **values)
    with pytest.raises(DataError, match=message):
        check_container(beton, manifest)


def test_a_pointer_inside_a_table_row_is_refused(beton: Path) -> None:
    manifest = read_manifest(beton)
    table = int(np.fromfile(beton, HeaderType, count=1)["alloc_table_ptr"][0])
    change_header(beton, alloc_table_ptr=table - 5)
    with pytest.raises(DataError, match="broken allocation table"):
        check_container(beton, manifest)


def test_other_fields_and_other_files_are_refused(beton: Path) -> None:
    manifest = read_manifest(beton)
    whole = bytearray(beton.read_bytes())
    fields = np.frombuffer(whole, FieldDescType, count=3, offset=HeaderType.itemsize)
    fields["name"][1, :4] = np.frombuffer(b"soil", np.uint8)
    beton.write_bytes(whole)
    with pytest.raises(DataError, match="image, soil, label"):
        check_container(beton, manifest)
    beton.write_bytes(b"\x89PNG" * 100)
    with pytest.raises(DataError, match="has no FFCV header"):
        check_container(beton, dataclasses.replace(manifest, beton_bytes=400))


def test_names_are_one_line_each_whatever_they_hold(beton: Path) -> None:
    names = [
        "a b/c.jpg",
        "new\nline.jpg",
        "ümlaut 猫.png",
        "b\udcffad.jpg",
        "tab\there",
        "sep\u2028",
    ]
    digest = write_names(beton, names)
    assert digest == sha256_file(names_path(beton))
    assert len(names_path(beton).read_text(encoding="utf-8").splitlines()) == len(names)
    assert sample_name(beton, 0) == "a b/c.jpg"
    assert sample_name(beton, 1) == r"new\nline.jpg"
    assert sample_name(beton, 2) == "ümlaut 猫.png"
    assert sample_name(beton, 3) == r"b\udcffad.jpg"
    with pytest.raises(DataError, match="no line 7"):
        sample_name(beton, 6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mask.size", "64"),
        ("mask.supervision", 3),
        ("mask.coverage_mean", [0.5]),
        ("mask.fallbacks", True),
        ("store.kind", 7),
        ("store.range", {"low": 0}),
        ("store.channels", "3"),
        ("store.pixels", -1),
        ("store.modes", {"jpg": 8}),
        ("store.remarks", ["none"]),
        ("store", []),
        ("history", [{"created": "", "source": 5, "first": 0, "count": 8}]),
        ("history", [{"source": "photos"}]),
        ("tool_versions", {"numpy": 2}),
        ("class_counts", ["4", 4]),
        ("count", "8"),
        ("created", 2026),
    ],
)
def test_values_of_another_kind_are_refused_under_a_new_seal(
    beton: Path, key: str, value: object
) -> None:
    path = manifest_path(beton)
    tree = json.loads(path.read_text())
    del tree["manifest_sha256"]
    part, _, inner = key.partition(".")
    tree[part] = {**tree[part], inner: value} if inner else value
    path.write_text(json.dumps({**tree, "manifest_sha256": tree_sha256(tree)}))
    with pytest.raises(DataError, match=rf"train\.json is no manifest: {key}.*make beton"):
        read_manifest(beton)


def test_shards_by_tools_of_several_versions_are_one_set(beton: Path, tmp_path: Path) -> None:
    known = read_manifest(beton)
    parts = [
        (f"{name}.beton", dataclasses.replace(known, tool_versions={"pillow": name}))
        for name in ("11", "12")
    ]
    (tmp_path / "set").mkdir()
    write_manifest(tmp_path / "set", merge_manifests(parts, []))
    assert read_manifest(tmp_path / "set").tool_versions == {"pillow": ["11", "12"]}


def test_a_container_and_the_folder_around_it_are_told_apart(tmp_path: Path) -> None:
    beton = tmp_path / "train.beton"
    write_beton(beton, plain_item, count=3)
    with pytest.raises(DataError, match=f"is the folder around containers: give .*{beton}$"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"train.json is a manifest: give the train.beton or set"):
        read_manifest(tmp_path / "train.json")
    for given in (beton, tmp_path / "train.json", tmp_path / "train"):
        with pytest.raises(DataError, match=f"give the folder that holds it, {tmp_path}$"):
            find_container(given, "train")


def test_what_is_not_there_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"typo does not exist: give a folder that"):
        find_container(tmp_path / "typo", "train")
    with pytest.raises(DataError, match=r"typo\.beton does not exist: give a container that"):
        read_manifest(tmp_path / "typo.beton")


@pytest.mark.parametrize("folder", [".", "/", ""])
def test_a_folder_without_a_name_holds_no_container(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="neither train"):
        find_container(Path(folder), "train")
    with pytest.raises(DataError, match="has no manifest beside it"):
        read_manifest(Path(folder))
