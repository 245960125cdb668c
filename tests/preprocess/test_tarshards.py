"""Tar shards of WebDataset: keys, labels, splits and patterns; bad ones are explained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harl_fast.errors import DataError
from preprocess.sources import SOURCES, Choices, Source, read_source
from tests.preprocess.packed import write_tar

pytest.importorskip("webdataset", reason="pip install webdataset")

PAIRS = {"a.jpg": b"1", "a.cls": b"3", "b.png": b"2", "b.cls": b"10\n"}


def read(path: Path, **choices: object) -> Source:
    return read_source(path, Choices(source="tar", **choices))


def samples(source: Source, split: str = "train") -> list[tuple[str, str, bytes]]:
    part = source.splits[split]
    return [
        (name, source.classes[label] if source.classes else "", part.file(row).open(99).read())
        for row, (name, label) in enumerate(zip(part.names, part.labels, strict=True))
    ]


def test_members_of_a_key_are_a_sample_in_any_order(tmp_path: Path) -> None:
    names = ["b.cls", "a.jpg", "b.png", "__meta__/x.jpg", "a.txt", "._a.jpg", "README", "a.cls"]
    path = write_tar(tmp_path / "x.tar", {name: PAIRS.get(name, b"-") for name in names})
    source = read(path, val=0.0)
    assert samples(source) == [("3/a.jpg", "3", b"1"), ("10/b.png", "10", b"2")]
    assert source.classes == ["3", "10"]
    said = "\n".join(source.notes)
    assert "passed over 3 members of other kinds" in said and ".txt 1" in said


@pytest.mark.parametrize(
    ("label", "found"),
    [({"label": "cat", "cls": 9}, "cat"), ({"class": 7}, "7"), ({"cls": 0}, "0")],
)
def test_labels_stand_in_json_too(label: dict[str, object], found: str, tmp_path: Path) -> None:
    more = {"b.jpg": b"2", "b.json": b'{"label": "dog"}'}
    path = write_tar(
        tmp_path / "x.tar", {"a.jpg": b"1", "a.json": json.dumps(label).encode(), **more}
    )
    source = read(path, val=0.0)
    assert {name for _, name, _ in samples(source)} == {found, "dog"}


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path) -> None:
    mark = "\N{BOM}".encode()
    members = {"c.jpg": b"1", "a.cls": mark + b"3", "c.json": mark + b'{"label": 10}'}
    assert read(write_tar(tmp_path / "x.tar", PAIRS | members), val=0.0).classes == ["3", "10"]


def test_the_command_line_names_the_label_or_none(tmp_path: Path) -> None:
    members = {
        f"{key}.{suffix}": data
        for key, kind in (("a", b"x"), ("b", b"y"))
        for suffix, data in (("jpg", b"1"), ("cls", b"1"), ("json", b'{"kind": "%s"}' % kind))
    }
    path = write_tar(tmp_path / "x.tar", members)
    assert read(path, label_column="kind", val=0.0).classes == ["x", "y"]
    plain = read(path, label_column="none")
    assert plain.classes == [] and [name for name, *_ in samples(plain)] == ["a.jpg", "b.jpg"]
    with pytest.raises(DataError, match="no image has a label by --label-column knd"):
        read(path, label_column="knd")


def test_shards_without_labels_are_read_without(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"s-{number}.tar", {f"{number}{k}.webp": b"1" for k in "ab"})
    source = read(tmp_path)
    assert source.classes == [] and len(source.splits["train"].names) == 4
    assert list(source.splits) == ["train"]


def test_shards_are_found_in_any_case_and_depth_and_the_rest_is_said(tmp_path: Path) -> None:
    for number, name in enumerate(("a.TAR", "b/c.tar", "b/d/e/f.Tar", "b/d/e/._f.tar")):
        write_tar(tmp_path / name, {f"{number}{k}.webp": b"1" for k in "ab"})
    (tmp_path / "b/README.md").write_text("x")
    (tmp_path / "b/c.tar.md5").write_text("x")
    assert [name for name, reader in SOURCES.items() if reader.fits(tmp_path)] == ["tar"]
    source = read(tmp_path)
    assert source.splits["train"].names == [
        f"{number}{k}.webp" for number in range(3) for k in "ab"
    ]
    listed = [(item.name, item.reason) for item in source.splits["train"].rejected]
    assert listed == [("b/README.md", "no .tar"), ("b/c.tar.md5", "no .tar")]
    assert "2 are left out (first: b/README.md: no .tar)" in source.notes


@pytest.mark.parametrize("name", ["y.tar.gz", "in/y.TGZ", "y.tar.zst", "y.tar.xz", "y.tbz2"])
def test_compressed_shards_beside_others_are_refused(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", PAIRS)
    write_tar(tmp_path / name, PAIRS)
    with pytest.raises(DataError, match=rf"holds 1 compressed shards \({name}\), .*: unpack them"):
        read(tmp_path)


def test_splits_are_those_of_the_shards_names(tmp_path: Path) -> None:
    for name in ("x-train-0", "train/1", "x-val-0", "test/0"):
        write_tar(
            tmp_path / f"{name}.tar", {name.replace("/", "") + k: v for k, v in PAIRS.items()}
        )
    source = read(tmp_path)
    assert [len(split.names) for split in source.splits.values()] == [4, 2]
    assert source.splits["val"].names == ["val/3/x-val-0a.jpg", "val/10/x-val-0b.png"]
    assert "2 rows of the split test are not used: val is" in "\n".join(source.notes)


def test_a_pattern_names_shards(tmp_path: Path) -> None:
    for number in range(12):
        key = f"{number:02d}"
        write_tar(
            tmp_path / f"s-{key}.tar",
            {f"{key}.jpg": key.encode(), f"{key}.cls": b"%d" % (number % 2)},
        )
    path = tmp_path / "s-{00..10}.tar"
    assert [name for name, reader in SOURCES.items() if reader.fits(path)] == ["tar"]
    source = read_source(path, Choices(val=0.0))
    assert [data for *_, data in samples(source)] == [b"%02d" % number for number in range(11)]


def test_equal_keys_of_shards_are_told_apart(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"s-{number}.tar", {**PAIRS, "a.jpg": b"%d" % number})
    source = read(tmp_path, val=0.0)
    names = [name for name, *_ in samples(source)]
    assert names == ["3/a.jpg", "10/b.png", "3/a-2.jpg", "10/b-2.png"]
    assert "2 samples had the name of another" in "\n".join(source.notes)


def test_a_member_without_partner_is_said(tmp_path: Path) -> None:
    lonely = {**PAIRS, "c.cls": b"3", "img.v2.jpg": b"1"}
    source = read(write_tar(tmp_path / "x.tar", lonely), val=0.0)
    reasons = {item.name: item.reason for item in source.splits["train"].rejected}
    assert "no image beside .cls" in reasons["c"]
    assert "no image beside .v2.jpg; a key ends at its first dot" in reasons["img"]
    assert "2 are left out (first: c: no image" in "\n".join(source.notes)
    unlabelled = {**PAIRS, "c.jpg": b"1", "d.jpg": b"1"}
    with pytest.raises(
        DataError, match=r"y.tar has a label in 2 of 4 rows only \(first without: y.tar: c.jpg\)"
    ):
        read(write_tar(tmp_path / "y.tar", unlabelled))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"1", "a.cls": b"\xff"}, r"the label of a cannot be read: .*utf-8"),
        ({"a.jpg": b"1", "a.json": b"[1]"}, r"the label of a cannot be read: its .json: holds"),
        ({"a.jpg": b"1", "a.json": b"[" * 99_999}, r"label of a cannot be read: its .json: nested"),
        ({"a.jpg": b"1", "a.json": b'{"label": 0.5}'}, r"0.5 is neither .* number. --label-col"),
        ({"a.jpg": b"1", "a.cls": b"1" * (2 << 20)}, r"2,097,152 bytes, more than 1,048,576"),
        ({"a.txt": b"1"}, r"x.tar holds no image \(jpg or .*\)"),
        ({"a.b.jpg": b"1", "a.b.cls": b"1"}, r"holds no image .*; a: .*ends at its first dot"),
        ({"a.jpg": b"1", "a.cls": b"1"}, r"only one label \(1\); .*two. --label-column none"),
    ],
)
def test_bad_shards_are_refused_in_one_line(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(write_tar(tmp_path / "x.tar", members))
    assert "\n" not in str(error.value)


def test_broken_shards_among_many_are_named(tmp_path: Path) -> None:
    for number in range(9):
        write_tar(tmp_path / f"s-{number}.tar", {f"{number}{k}": v for k, v in PAIRS.items()})
    whole = (tmp_path / "s-3.tar").read_bytes()
    (tmp_path / "s-3.tar").write_bytes(whole[:1500])
    (tmp_path / "s-5.tar").write_bytes(b"x" * 999)
    message = (
        r"2 of 9 files cannot be read: s-3.tar \(.*\); s-5.tar \(.*\). Get them again, or go on"
    )
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    rest = read(tmp_path, skip_broken=True)
    assert len([name for split in rest.splits.values() for name in split.names]) == 2 * 7
    assert any("2 of 9 files cannot be read: s-3.tar" in note for note in rest.notes)
    left_out = {one.name for split in rest.splits.values() for one in split.rejected}
    assert left_out == {"s-3.tar", "s-5.tar"}
    with pytest.raises(DataError, match=r"1 of 10 files cannot be read: s-9.tar \(No such file"):
        (tmp_path / "s-3.tar").write_bytes(whole)
        (tmp_path / "s-5.tar").write_bytes(whole)
        read(tmp_path / "s-{0..9}.tar")


def test_a_split_in_some_names_only_is_refused_with_what_states_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", PAIRS)
    write_tar(tmp_path / "unlabelled-0.tar", {f"x{name}": data for name, data in PAIRS.items()})
    with pytest.raises(DataError, match=r"a split in .* rows only .*stands in the files' names"):
        read(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"package webdataset, .* pip install webdataset"):
        read(write_tar(tmp_path / "x.tar", PAIRS))


@pytest.mark.parametrize("numbers", ["{0..99999999}", "{000..999}-{00..99}-{0..99}"])
def test_a_pattern_of_far_too_many_shards_is_refused_at_once(tmp_path: Path, numbers: str) -> None:
    with pytest.raises(DataError, match=r"stands for 1\d{1,2},000,000 shards, more than 1,000,000"):
        read_source(tmp_path / f"x-{numbers}.tar", Choices())
