"""Lists of images: CSV, TSV, JSON lines and paths give the same set; bad ones are explained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harl_fast.errors import ConfigError, DataError
from preprocess.masks.registry import parse_spec
from preprocess.masks.sources import open_masks
from preprocess.sources import Choices, Source, read_source
from preprocess.sources.base import UNLABELLED
from tests.preprocess.support import photo, save
from tests.preprocess.test_sources import layout

ROWS = [
    {"path": "x/1.jpg", "label": "cat", "split": "train"},
    {"path": "x/2.jpg", "label": "dog", "split": "train"},
    {"path": "./x/../y/3 a,b.jpg", "label": "cat", "split": "Test"},
]


def write(folder: Path, kind: str, rows: list[dict[str, str]]) -> Path:
    """Return a list of the rows in a format, beside files of their names."""
    layout(folder, *(row["path"] for row in rows))
    file = folder / f"list.{kind}"
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        mark = "," if kind == "csv" else "\t"
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        text = "\r\n".join(
            mark.join(f'"{value}"' if mark in value else value for value in line) for line in lines
        )
    file.write_bytes(b"\xef\xbb\xbf" * (kind == "csv") + text.encode())  # as Excel writes it
    return file


def facts(source: Source) -> dict[str, list[tuple[str, str]]]:
    return {
        name: [
            (one, source.classes[label])
            for one, label in zip(split.names, split.labels, strict=True)
        ]
        for name, split in source.splits.items()
    }


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_all_formats_give_the_same_set(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    source = read_source(write(tmp_path, kind, ROWS), Choices())
    assert facts(source) == {
        "train": [("x/1.jpg", "cat"), ("x/2.jpg", "dog")],
        "val": [("y/3 a,b.jpg", "cat")],
    }
    assert source.splits["val"].image(0) == tmp_path / "y/3 a,b.jpg"
    assert source.classes == ["cat", "dog"] and source.splits["train"].mask_files is None


def test_a_text_file_of_paths_has_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout(tmp_path, "set/# 1.jpg", "set/b/2.jpg")
    (tmp_path / "set/all.txt").write_text(f"# 1.jpg\n\n{tmp_path}/set/b/2.jpg\n")
    source = read_source(tmp_path / "set/all.txt", Choices())
    assert source.classes == [] and source.splits.keys() == {"train"}
    assert source.splits["train"].names == ["# 1.jpg", "b/2.jpg"]
    assert source.splits["train"].labels == [UNLABELLED] * 2
    assert "a list of images (CSV, TSV, JSON lines or paths): 2 train" in capsys.readouterr().out


def test_paths_outside_the_lists_folder_are_named_from_where_all_lie(tmp_path: Path) -> None:
    layout(tmp_path, "store/a/1.jpg", "store/b/2.jpg", "lists/.keep")
    (tmp_path / "lists/all.txt").write_text(f"../store/a/1.jpg\n{tmp_path}/store/b/2.jpg\n")
    train = read_source(tmp_path / "lists/all.txt", Choices()).splits["train"]
    assert train.names == ["a/1.jpg", "b/2.jpg"] and train.image(1) == tmp_path / "store/b/2.jpg"


def test_numbers_are_classes_in_their_order_and_a_part_is_held_out(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.jpg", "label": str(n % 11)} for n in range(220)]
    source = read_source(write(tmp_path, "csv", rows), Choices())
    assert source.classes == [str(n) for n in range(11)]
    assert sorted(source.splits["val"].labels) == list(range(11))
    assert len(source.splits["train"].names) == 209
    numbers = [{"path": row["path"], "label": int(row["label"])} for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, numbers)))
    assert facts(read_source(tmp_path / "list.jsonl", Choices())) == facts(source)


def test_rows_of_a_further_held_out_part_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"path": "z.jpg", "label": "cat", "split": "val"}]
    source = read_source(write(tmp_path, "tsv", rows), Choices())
    assert source.splits["val"].names == ["z.jpg"]
    assert source.notes == ["1 rows of the split test are not used: val is"]
    with pytest.raises(DataError, match="held-out part of its own: leave --val out"):
        read_source(tmp_path / "list.tsv", Choices(val=0.1))


def test_classes_that_may_be_one_or_none_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("Cat", "cat", "dog", "NaN", "nano")
    rows = [{"path": f"{n}.jpg", "label": labels[n % 5]} for n in range(20)]
    assert read_source(write(tmp_path, "csv", rows), Choices()).classes == sorted(labels)
    case, missing = capsys.readouterr().out.splitlines()[-2:]
    assert case.endswith("by letter case only are read as two each: Cat and cat")
    assert missing.startswith("note: read as classes like any other: NaN. If images")
    layout(tmp_path, *(f"set/train/{name}/1.jpg" for name in ("Cat", "cat")))
    read_source(tmp_path / "set", Choices())
    assert "Cat and cat" in capsys.readouterr().out


def test_masks_are_those_that_the_list_names(tmp_path: Path) -> None:
    rows = [
        {"path": "1.jpg", "mask": "m/one.png"},
        {"path": "2.jpg", "mask": ""},
    ]
    layout(tmp_path, "m/one.png")
    split = read_source(write(tmp_path, "csv", rows), Choices()).splits["train"]
    assert split.mask_files == [tmp_path / "m/one.png", None]
    method = parse_spec("center")
    masks = open_masks(split, [], method=method, given=None)
    assert masks.request(0).file == tmp_path / "m/one.png"
    assert masks.request(1).file is None and "no mask in the list" in masks.request(1).lacking
    assert masks.facts["supervision"] == "unknown" and masks.methods[0] == method
    with pytest.raises(ConfigError, match="does not go with a list that names masks"):
        open_masks(split, [], method=method, given=tmp_path / "m")
    with pytest.raises(ConfigError, match=r"shuffled.* does not go with a list"):
        open_masks(split, [], method=parse_spec("shuffled"), given=None)


BAD = {
    "path,label\na.jpg,x\nb.jpg,\n": r"label in 1 of 2 rows only \(first without: line 3\): fill",
    "path,split\na.jpg,train\nb.jpg,\n": r"split in 1 of 2 rows only",
    "path,split\na.jpg,train\nb.jpg,dev\n": r"1 rows of other splits than.*'dev' in line 3",
    "path,split\na.jpg,val\n": "no row of the split train",
    "path,label\na.jpg,x\nb.jpg,x\n": r"only one label \(x\).*Leave the column label out",
    "path,label,split\na.jpg,x,train\nb.jpg,y,train\nc.jpg,z,val\n": r"1 labels in its held.*\(z\)",
    "path\na.jpg\n./a.jpg\n": r"names 1 files again \(first: \./a.jpg in lines 2 and 3\)",
    "file,label\na.jpg,x\n": r"no column named path, but these: file, label",
    "path,path\na.jpg,x\n": "two columns named path",
    "path,label\na,b.jpg,x\n": r"3 values in line 2, but 2 columns; put quotes",
    "path,label\n,x\n": r"1 rows without a path \(first: line 2\)",
    "path,label\nx\\1.jpg,u\n": r"1 files that are not .*; part folders by /, not by .*line 2",
    "path\n": "names no image",
    "": "no column named path, but these: none",
    'path\n"a.jpg\n': r"line 2: unexpected end of data; quotes go around a whole value",
    'path\nb.jpg\n"a".jpg\n': r"line 3: .* expected after .*; quotes go around a whole value",
    "path,label\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\n": "two labels that both read",
    "path,label\na.jpg,x\x1b[31m\nb.jpg,y\n": r"label that does not print \(x\\x1b\[31m\)",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_lists_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    layout(tmp_path, "a.jpg", "b.jpg", "c.jpg", "x/1.jpg")
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=BAD[text]) as caught:
        read_source(tmp_path / "list.csv", Choices())
    assert str(caught.value).count("\n") == 0 and "list.csv" in str(caught.value)


def test_labels_behind_the_paths_of_a_text_file_are_told_from_wrong_paths(tmp_path: Path) -> None:
    """Caffe's lists have them."""
    layout(tmp_path, "my photos/1.jpg", "2.jpg")
    (tmp_path / "list.txt").write_text("my photos/1.jpg\t0\n2.jpg 1\n")
    with pytest.raises(DataError, match=r"'0' behind it \(line 1\) .*: for labels write a CSV"):
        read_source(tmp_path / "list.txt", Choices())
    (tmp_path / "list.txt").write_text("my photos/1.jpg\n3.jpg\n")
    with pytest.raises(DataError, match=r"3\.jpg\); paths are relative to the list's folder$"):
        read_source(tmp_path / "list.txt", Choices())


@pytest.mark.parametrize("name", ["list", "list.dat"])
def test_a_list_of_another_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("path\na.jpg\n")
    with pytest.raises(DataError, match=r"no list by its name; give it one of .csv .tsv"):
        read_source(tmp_path / name, Choices("list"))


def test_numbers_of_any_length_are_in_order(tmp_path: Path) -> None:
    layout(tmp_path, *(f"{n}.jpg" for n in range(5)))
    labels = ["9" * 5000, "10", "007", "7", "0"]
    rows = "\n".join(f"{n}.jpg,{label}" for n, label in enumerate(labels))
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}\n")
    source = read_source(tmp_path / "list.csv", Choices(val=0))
    assert source.classes == ["0", "007", "7", "10", "9" * 5000]


def test_missing_files_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    layout(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n" + "".join(f"gone{n}.jpg\n" for n in range(7)))
    with pytest.raises(DataError) as caught:
        read_source(tmp_path / "list.txt", Choices())
    text = str(caught.value)
    assert "names 7 files that are not there (line 2: " in text and "gone4.jpg, ...)" in text
    assert "gone5" not in text
    (tmp_path / "masks.csv").write_text("path,mask\na.jpg,none.png\n")
    with pytest.raises(DataError, match=r"1 files that are not there \(line 2: .*none.png"):
        read_source(tmp_path / "masks.csv", Choices())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", r"line 1: holds a list"),
        ('{"path": "a.jpg"', r"line 1: not valid JSON"),
        ('{"file": "a.jpg"}', r"no key named path in line 1, but these: file"),
        ('{"path": "a.jpg", "label": 1.5}', r"label is 1.5 in line 1; give a text or a whole"),
        ('{"path": ["a.jpg"]}', r"path is \['a.jpg'\] in line 1"),
        ("[" * 100_000, r"line 1: nested more than"),
        ('{"path": "a.jpg", "label": "a", "label": "b"}', r"line 1: the key 'label' stands twice"),
    ],
)
def test_bad_json_lines_are_refused(line: str, message: str, tmp_path: Path) -> None:
    layout(tmp_path, "a.jpg")
    (tmp_path / "list.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_source(tmp_path / "list.jsonl", Choices())


def test_semicolons_and_urls_are_named_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path;label\na.jpg;cat\n")
    with pytest.raises(DataError, match="parted by semicolons: part them by commas"):
        read_source(tmp_path / "list.csv", Choices())
    (tmp_path / "list.txt").write_text("https://example.com/a.jpg\n")
    with pytest.raises(DataError, match=r"names 1 URLs \(first: line 1\): download"):
        read_source(tmp_path / "list.txt", Choices())


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("path\ncaf\u00e9.jpg\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"is not UTF-8.*save it as UTF-8"):
        read_source(tmp_path / "list.csv", Choices())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt"])
def test_a_list_that_is_a_pipe_or_a_pointer_of_git_lfs_is_told_so(
    kind: str, tmp_path: Path
) -> None:
    pipe, pointer = tmp_path / f"pipe.{kind}", tmp_path / f"pointer.{kind}"
    os.mkfifo(pipe)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    for file, what in ((pipe, "a named pipe, not a regular"), (pointer, "a pointer of Git LFS")):
        with pytest.raises(DataError, match=f"{file} is {what}"):
            read_source(file, Choices(source="list"))


def test_a_list_of_what_is_no_image_leaves_that_to_the_conversion(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "a.jpg")
    (tmp_path / "b.bin").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a.jpg\nb.bin\n")
    assert read_source(tmp_path / "list.txt", Choices()).splits["train"].names == ["a.jpg", "b.bin"]


def test_a_set_of_photos_is_the_same_as_folders_and_as_lists(
    real_images: Path, tmp_path: Path
) -> None:
    folder = read_source(real_images, Choices())
    rows = [
        {"path": str(real_images.resolve() / name), "label": label, "split": split}
        for split, pairs in facts(folder).items()
        for name, label in pairs
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = read_source(tmp_path / "list.jsonl", Choices())
    assert listed.classes == folder.classes and facts(listed) == facts(folder)
    for name, split in listed.splits.items():
        files = [split.image(row) for row in range(len(split.names))]
        assert files == [real_images.resolve() / one for one in folder.splits[name].names]
    plain = read_source(real_images, Choices("images"))
    assert {name: set(split.names) for name, split in plain.splits.items()} == {
        name: set(split.names) for name, split in folder.splits.items()
    }
    classes = read_source(real_images / "train", Choices(val=0))
    assert [f"train/{name}" for name, _ in facts(classes)["train"]] == [
        name for name, _ in facts(folder)["train"]
    ]


def test_a_file_whose_name_has_another_unicode_form_is_said(tmp_path: Path) -> None:
    layout(tmp_path, "caf\u00e9/cafe\u0301.jpg", "cafe\u0301.jpg")
    (tmp_path / "list.txt").write_text("caf\u00e9.jpg\n")
    with pytest.raises(
        DataError, match=r"'cafe\\u0301.jpg', and line 1 'caf\\xe9.jpg': two.*convmv"
    ):
        read_source(tmp_path / "list.txt", Choices())
