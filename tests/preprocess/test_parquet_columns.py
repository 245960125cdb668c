"""Columns of tables by any name and of any type that holds bytes, whole numbers or texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.sources import parquet
from tests.preprocess.test_parquet import IMAGES, read, rows, structs, table

pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")


def saved(folder: Path, **columns: Any) -> Path:
    """Write columns as a data set on disk, of one Arrow file."""
    folder.mkdir()
    data = pa.table(columns)
    with (
        pa.OSFile(str(folder / "x.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, data.schema) as writer,
    ):
        writer.write_table(data)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    return folder


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_names_of_columns_may_have_dots(tmp_path: Path, kind: str) -> None:
    """As `datasets` writes them in flatten()."""
    columns = {
        "image.bytes": IMAGES, "image.path": ["p.jpg"] * 4, "label.name": ["cat", "dog"] * 2,
    }  # fmt: skip
    path = (
        table(tmp_path / "x.parquet", rows=3, **columns)
        if kind == "parquet"
        else saved(tmp_path / "saved", **columns)
    )
    for choices in ({}, {"image_column": "image.bytes"}):
        source = read(path, label_column="label.name", **choices)
        assert source.classes == ["cat", "dog"] and [data for _, data in rows(source)] == IMAGES


def test_a_column_with_a_dot_is_none_inside_a_struct(tmp_path: Path) -> None:
    columns = {"image": structs([None] * 4), "image.bytes": [b"x"] * 4}
    path = table(tmp_path / "x.parquet", **columns)
    for name, wanted in (("image", IMAGES), ("image.bytes", [b"x"] * 4)):
        source = read(path, image_column=name)
        assert [data for _, data in rows(source)] == wanted


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bytes_and_texts_may_be_views(tmp_path: Path, kind: str) -> None:
    """As polars writes them."""
    images = pa.array(IMAGES, pa.binary()).cast(pa.binary_view())
    columns = {"image": images, "label": pa.array(["cat", "dog"] * 2).cast(pa.string_view())}
    path = (
        table(tmp_path / "x.parquet", **columns)
        if kind == "parquet"
        else saved(tmp_path / "saved", **columns)
    )
    source = read(path)
    assert source.classes == ["cat", "dog"] and [data for _, data in rows(source)] == IMAGES


def test_a_fault_of_the_program_is_not_blamed_on_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "x.parquet", image=IMAGES)
    for fault in (TypeError, AttributeError, IndexError):

        def failing(*_: object, fault: type[Exception] = fault) -> None:
            raise fault("ours")

        monkeypatch.setattr(parquet, "_columns", failing)
        with pytest.raises(fault, match="ours"):
            read(path)
