"""Tables of images: which columns are taken, what names and labels mean, and what is refused."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import DataError
from harl_fast.files import UnusualFileError
from preprocess.sources import Choices, Source, cells, read_source
from preprocess.sources.cells import Cell
from preprocess.sources.parquet import fits_tables, tables_at
from preprocess.sources.samples import unique_names
from tests.preprocess.packed import to_saved
from tests.preprocess.support import image_folder

pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")

IMAGES = [b"0", b"1", b"2", b"3"]


def table(path: Path, rows: int = 10, **columns: Any) -> Path:
    """Write a Parquet file of some columns, and say so if a name is Hugging Face's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def structs(paths: list[str | None]) -> Any:
    return pa.array([{"bytes": b, "path": p} for b, p in zip(IMAGES, paths, strict=True)])


def read(path: Path, **choices: object) -> Source:
    return read_source(path, Choices(source="parquet", **{"val": 0.0, **choices}))


def rows(source: Source, split: str = "train") -> list[tuple[str, bytes]]:
    part = source.splits[split]
    return [(name, part.file(row).open(99).read()) for row, name in enumerate(part.names)]


def test_columns_are_taken_by_their_kind_and_name(tmp_path: Path) -> None:
    path = table(
        tmp_path / "x.parquet",
        rows=3,
        id=[b"x"] * 4,
        jpg=IMAGES,
        cls=[1, 0, 10, 1],
        caption=["a"] * 4,
    )
    source = read(path)
    assert source.classes == ["0", "1", "10"]
    names = ["1/x-000000", "0/x-000001", "10/x-000002", "1/x-000003"]
    assert rows(source) == list(zip(names, IMAGES, strict=True))
    assert source.notes[0].startswith("images are those of the column jpg, not of id;")
    other = read(path, image_column="id", label_column="none")
    assert other.classes == [] and rows(other)[0] == ("x-000000", b"x")


def test_large_rows_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "x.parquet", rows=4, image=IMAGES)
    for most, lengths in ((1 << 20, [4]), (1, [1] * 4)):
        monkeypatch.setattr(cells, "_BYTES_AT_ONCE", most)
        batches = list(cells._batches(path, ("image",), 0))
        assert [len(batch) for batch in batches] == lengths
        assert [value.as_py() for batch in batches for value in batch] == IMAGES


def test_usual_names_count_in_capitals_too(tmp_path: Path) -> None:
    columns = {"Id": [b"x"] * 4, "Image": IMAGES, "Label": ["cat", "dog"] * 2}
    source = read(table(tmp_path / "x.parquet", **columns))
    assert source.classes == ["cat", "dog"] and [data for _, data in rows(source)] == IMAGES


def test_labels_may_be_texts_and_names_are_the_images_own(tmp_path: Path) -> None:
    images = structs(["1.jpg", "d/1.jpg", "/home/me/1.jpg", None])
    path = table(tmp_path / "x.parquet", image=images, label=["cat", "a/b", "cat", "cat"])
    source = read(path)
    assert source.classes == ["a/b", "cat"]
    assert [name for name, _ in rows(source)] == [
        "cat/1.jpg", "d/1.jpg", "cat/1-2.jpg", "cat/x-000003"
    ]  # fmt: skip
    up = table(tmp_path / "y.parquet", image=structs(["../../1.jpg"] * 4), label=["a", ".."] * 2)
    assert [name for name, _ in rows(read(up))][:2] == ["a/1.jpg", "_/1.jpg"]


def test_splits_are_those_of_names_and_a_test_set_without_labels_is_not_used(
    tmp_path: Path,
) -> None:
    for name, labels in (("data/train-0-of-1", [0, 1, 0, 1]), ("data/test-0-of-1", [-1] * 4)):
        table(tmp_path / f"{name}.parquet", image=IMAGES, label=labels)
    source = read(tmp_path)
    assert list(source.splits) == ["train"] and rows(source)[0][0] == "train/0/train-0-of-1-000000"
    assert "4 rows of the split test are not used: they have no labels" in source.notes
    table(tmp_path / "data/validation.parquet", image=IMAGES, label=[None] * 4)
    assert "4 rows of the split val are not used: they have no labels" in read(tmp_path).notes
    (tmp_path / "data/validation.parquet").unlink()
    table(tmp_path / "default/validation/0000.parquet", image=IMAGES, label=[1, 0, 1, 0])
    assert rows(read(tmp_path, val=None), "val")[0][0] == "val/1/0000-000000"


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    images = [b"%d" % number for number in range(50)]
    path = table(tmp_path / "x.parquet", rows=40, image=images)
    members = read(path).splits["train"].members
    assert members is not None
    for row in (0, 17, 3, 49, 41, 39, 40, 38):
        assert members[row].open(9).read() == images[row]
    assert [one.open(9).read() for one in members] == images


def test_a_saved_data_set_keeps_its_order_and_class_names(tmp_path: Path) -> None:
    saved = to_saved(image_folder(tmp_path / "set", classes=2), tmp_path / "saved")
    whole = read(saved, val=None)
    assert whole.classes == ["class0", "class1"]
    assert whole.splits["train"].names[0] == "train/class0/0.jpg"
    assert whole.splits["val"].names[0] == "test/class0/0.jpg"
    one = read(saved / "train")  # a split of it, itself a data set on disk
    assert one.splits["train"].names[0] == "class0/0.jpg"


def test_a_cell_without_bytes_or_too_large_is_said(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", image=[b"12345", None])
    cell = Cell(path, ("image",), 0, 0, 5)
    assert cell.open(5).read() == b"12345"
    for bad, message in (
        (cell._replace(row=1), "the table holds no bytes of it"),
        (cell._replace(row=2), r"damaged: the row group ends at row 2"),
        (cell._replace(group=3), "damaged: "),
    ):
        with pytest.raises(UnusualFileError, match=message):
            bad.open(5)
    with pytest.raises(UnusualFileError, match="5 bytes, more than 4"):
        cell.open(4)


METADATA = {b"huggingface": json.dumps({"info": {"features": {
    "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    "coarse": {"_type": "ClassLabel", "names": ["x", "y"]},
}}}).encode()}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "choices", "message"),
    [
        (
            {"url": ["a"] * 4, "label": [1] * 4},
            {},
            r"has no column of images, .*; it has url \(string\), label \(int64\)\. Write the",
        ),
        (
            {"image": IMAGES},
            {"image_column": "img"},
            r"has no column img of images.* image \(binary\)\. Choose by --image-column",
        ),
        ({"image": IMAGES}, {"label_column": "kind"}, r"no column kind of whole numbers or texts"),
        (
            {"a": IMAGES, "b": IMAGES},
            {},
            r"has 2 columns of images \(a, b\): choose by --image-col",
        ),
        (
            {"image": IMAGES, "label": [0, 1, None, 1]},
            {},
            r"label in 3 of 4 rows only \(first .*row 2.*none. --label-column none reads",
        ),
        (
            {"image": IMAGES, "label": [0] * 4},
            {},
            r"only one label \(0\); .*two. --label-column none reads the images without labels",
        ),
        ({"image": pa.array([], pa.binary())}, {}, r"holds no row"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    columns: dict[str, Any], choices: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(table(tmp_path / "x.parquet", **columns), **choices)
    assert "\n" not in str(error.value)


def test_numbers_mean_the_classes_of_the_metadata(tmp_path: Path) -> None:
    def write(**columns: Any) -> Path:
        data = pa.table({"image": IMAGES, **columns}).replace_schema_metadata(METADATA)
        pq.write_table(data, tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    assert read(write(label=[1, 0, 1, 0], coarse=[0, 1, 1, 0])).classes == ["cat", "dog"]
    found = read(write(label=[1, 0, 1, 0], coarse=[0, 1, 1, 0]), label_column="coarse")
    assert found.classes == ["x", "y"]
    with pytest.raises(DataError, match=r"label of row 1 is 7, .* 2 classes, from 0. --label-c"):
        read(write(label=[1, 7, 1, 0]))


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_table(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (tmp_path / "x.parquet").write_text(pointer)
    with pytest.raises(DataError, match=r"x.parquet \(a pointer of Git LFS, .* by `git lfs pull`"):
        read(tmp_path)


def named(path: Path, labels: Any, classes: list[str] | None) -> None:
    """Write a table whose metadata, if ``classes`` are given, name what the labels mean."""
    feature = {"label": {"_type": "ClassLabel", "names": classes}}
    metadata = {b"huggingface": json.dumps({"info": {"features": feature}}).encode()}
    data = pa.table({"image": IMAGES, "label": labels})
    pq.write_table(data.replace_schema_metadata(metadata if classes else None), path)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([1, 0, 1, 0], ["dog", "cat"]), ([0, 1, 0, 1], None), (["cat", "dog"] * 2, None)],
)
def test_each_file_says_what_its_own_labels_mean(
    tmp_path: Path, labels: list[Any], classes: list[str] | None
) -> None:
    named(tmp_path / "0.parquet", [0, 0, 1, 1], ["cat", "dog"])
    named(tmp_path / "1.parquet", labels, classes)
    source = read(tmp_path)
    kinds = [source.classes[label] for label in source.splits["train"].labels]
    assert kinds == ["cat", "cat", "dog", "dog", *["cat", "dog"] * 2]


def test_two_classes_of_a_name_are_refused(tmp_path: Path) -> None:
    named(tmp_path / "x.parquet", [0, 1, 2, 0], ["cat", "cat", "dog"])
    with pytest.raises(DataError, match=r"label name two classes 'cat', .*--label-column none"):
        read(tmp_path)
    assert read(tmp_path, label_column="none").classes == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (([0, 1, 0, 1], None), ([1, 0, 1, 0], ["dog", "cat"])),
        (([0, 1, 0, 1], None), (["cat", "dog"] * 2, None)),
        ((["cat", "dog"] * 2, None), ([0, 1, 0, 1], None)),
    ],
)
def test_numbers_beside_names_are_refused(tmp_path: Path, first: Any, second: Any) -> None:
    for number, (labels, classes) in enumerate((first, second)):
        named(tmp_path / f"{number}.parquet", labels, classes)
    with pytest.raises(DataError, match=r"1\.parquet: its labels are (names|numbers), and"):
        read(tmp_path)
    assert read(tmp_path, label_column="none").classes == []


def test_broken_files_among_many_are_named(tmp_path: Path) -> None:
    for number in range(3):
        table(tmp_path / f"{number}.parquet", image=IMAGES)
    whole = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(whole[:-20])
    with pytest.raises(
        DataError, match=r"1 of 3 files cannot be read: 1.parquet \(.*\)\. Get them"
    ):
        read(tmp_path)
    table(tmp_path / "1.parquet", other=IMAGES)
    before = read(tmp_path, skip_broken=True)
    assert len(before.splits["train"].names) == 2 * len(IMAGES)
    assert "1 of 3 files cannot be read: 1.parquet" in before.notes[0]
    with pytest.raises(DataError, match=r"1 of 3 files cannot be read: 1.parquet \(.*image"):
        read(tmp_path)


def test_a_saved_data_set_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    saved = to_saved(image_folder(tmp_path / "set", classes=2), tmp_path / "saved")
    state = saved / "test/state.json"
    for name in ("../train/data-00000-of-00002.arrow", "/etc/passwd", 5, None):
        state.write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"state.json has no list of names under '_data_files'"):
            read(saved, val=None)


def test_a_saved_data_set_may_have_thousands_of_files(tmp_path: Path) -> None:
    names = [f"data-{number:05d}-of-03000.arrow" for number in range(3000)]
    state = {"_data_files": [{"filename": name} for name in names]}
    (tmp_path / "state.json").write_text(json.dumps(state, indent=2))
    assert tables_at(tmp_path) == [(tmp_path / name, "") for name in names]


def test_an_arrow_file_of_wrong_offsets_is_refused(tmp_path: Path) -> None:
    """Arrow follows them unseen."""
    array = pa.array(IMAGES, pa.binary())
    offsets = pa.array([0, 1, 2, 1 << 30, 4], pa.int32())
    bad = pa.BinaryArray.from_buffers(
        pa.binary(), 4, [None, offsets.buffers()[1], array.buffers()[2]]
    )
    folder = tmp_path / "saved"
    folder.mkdir()
    with pa.OSFile(str(folder / "x.arrow"), "wb") as sink:
        batch = pa.record_batch({"image": bad})
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    with pytest.raises(DataError, match=r"1 of 1 files cannot be read: x.arrow"):
        read(folder)


def test_an_arrow_cell_outside_its_batch_is_damage(tmp_path: Path) -> None:
    saved = to_saved(image_folder(tmp_path / "set", classes=2), tmp_path / "saved")
    cell = Cell(saved / "test/data-00000-of-00001.arrow", ("image", "bytes"), 0, 99, 1)
    with pytest.raises(UnusualFileError, match="damaged: "):
        cell.open(1 << 20)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "x.parquet", image=IMAGES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"package pyarrow, .* pip install pyarrow"):
        read(path)


@pytest.mark.parametrize(
    "labels", [[0.0, 1.0, 0.0, 1.0], [True, False, True, True], [[1], [2], [1], [2]]]
)
@pytest.mark.parametrize("name", ["label", "cls"])
def test_labels_of_another_kind_are_not_left_out_unsaid(
    tmp_path: Path, name: str, labels: list[object]
) -> None:
    path = table(tmp_path / "x.parquet", image=IMAGES, **{name: labels, "category": ["a", "b"] * 2})
    with pytest.raises(DataError, match=rf"the column {name} has .* values, .*--label-column none"):
        read(path)
    assert read(path, label_column="none").classes == []
    assert read(path, label_column="category").classes == ["a", "b"]


@pytest.mark.parametrize("name", ["image", "label"])
def test_two_columns_of_a_name_are_refused(tmp_path: Path, name: str) -> None:
    columns = {"image": pa.array(IMAGES), "label": pa.array([0, 1, 0, 1])}
    twice = pa.Table.from_arrays([*columns.values(), columns[name]], [*columns, name])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"two columns named {name}: rename one"):
        read(tmp_path / "x.parquet")


def test_other_files_of_a_folder_are_counted_or_listed(tmp_path: Path) -> None:
    for name in ("train-0", "d/e/f/g/train-1"):
        table(tmp_path / f"{name}.parquet", image=IMAGES, label=[0, 1, 0, 1])
    for name in ("._train-0.parquet", ".cache/x.parquet", "README.md", "d/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = read(tmp_path)
    assert len(source.splits["train"].names) == 8
    assert [one.name for one in source.splits["train"].rejected] == ["README.md", "d/notes.txt"]
    assert any("passed over 2 hidden or system files and folders" in note for note in source.notes)
    for file in tmp_path.rglob("train-*"):
        file.unlink()
    assert not fits_tables(tmp_path)


def test_what_datasets_writes_beside_its_files_is_no_other_file(tmp_path: Path) -> None:
    folder = to_saved(image_folder(tmp_path / "set", classes=2, train=2, val=1), tmp_path / "saved")
    (folder / "train/cache-1.arrow").write_bytes(b"")
    source = read(folder, val=None)
    assert [one.name for one in source.splits["train"].rejected] == ["train/cache-1.arrow"]


def test_rows_of_one_name_take_no_longer_than_others() -> None:
    """Tables whose images are all called image.jpg are common."""
    start = time.process_time()
    names, changed = unique_names(["a/image.jpg"] * 30_000)
    assert time.process_time() - start < 5
    assert changed == 29_999 and names[-1] == "a/image-30000.jpg" and len(set(names)) == 30_000
