"""The result folder: what is written is what is read, and nothing else is lost."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harl_fast.errors import DataError
from harl_fast.eval import results
from harl_fast.eval.metrics import predictions, scores
from harl_fast.eval.results import (
    Head,
    Result,
    classes_sha256,
    read_head,
    read_result,
    result_folder,
    results_in,
    write_head,
    write_result,
)
from harl_fast.files import short_temporary

CLASSES = ["cat", "dog", "ibis"]
CHECKPOINT = {"path": "x", "weights_sha256": "c", "receipt": "4/4 tensors"}


def result(**changes: Any) -> Result:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    found = predictions(torch.randn(30, 3, generator=generator), labels)
    fields: dict[str, Any] = {
        "protocol": "cached",
        "headline": "top1",
        "data": {
            "name": "pets",
            "classes": CLASSES,
            "train_sha256": "a",
            "val_sha256": "b",
            "train_count": 60,
            "val_count": 30,
            "split": "official",
        },
        "checkpoint": CHECKPOINT,
        "preprocessing": {"size_px": 32, "crop": 1.0, "mean": [0.5], "std": [0.5]},
        "settings": {"epochs": 100, "knn_temperature": 0.07},
        "metrics": scores(found, classes=3),
        "knn": {"20": scores(found, classes=3)},
        "choice": {"lr": 0.1},
        "trials": [{"lr": 0.1, "nll": 1.5}, {"lr": 1e9, "nll": float("inf")}],
        "predictions": found,
        "ids": torch.arange(30) * 2,
        "names": [f"{CLASSES[i % 3]}/ä{i}.jpg" for i in range(30)],
        "head": Head(torch.randn(3, 5, generator=generator), torch.zeros(3)),
        "seed": 0,
    }
    return Result(**(fields | changes))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = result()
    folder = write_result(result_folder(tmp_path, data="pets", protocol="cached"), made)
    assert folder == tmp_path / "eval" / "pets-cached"
    got = read_result(folder)
    plain = [f.name for f in dataclasses.fields(Result) if f.name not in ("trials", "head")]
    for name in plain:
        one, other = getattr(got, name), getattr(made, name)
        if name == "predictions":
            assert all(torch.equal(vars(one)[k], vars(other)[k]) for k in vars(other))
        elif name == "ids":
            assert torch.equal(one, other)
        else:
            assert one == other, name
    assert got.trials[1] == {"lr": 1e9, "nll": None}  # JSON has no infinity
    assert got.head is not None and made.head is not None
    assert torch.equal(got.head.weight, made.head.weight)
    assert read_result(folder / "result.json").names == made.names
    assert json.loads((folder / "result.json").read_text())["format"] == 1


@pytest.mark.parametrize("name", ["predictions.npz", "head.safetensors"])
def test_a_file_of_another_result_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_result(tmp_path / "r", result())
    labels = torch.arange(30) % 3
    others = {"predictions": predictions(torch.eye(3)[labels], labels)}
    other = write_result(
        tmp_path / "o", result(head=Head(torch.ones(3, 5), torch.ones(3)), **others)
    )
    (other / name).replace(folder / name)
    with pytest.raises(DataError, match=rf"r/{name} is not the one that .*r/result\.json was writ"):
        read_result(folder)
    record = json.loads((folder / "result.json").read_text())
    del record["files"]  # as of a result from before there were digests
    (folder / "result.json").write_text(json.dumps(record))
    assert read_result(folder).names == result().names


def test_the_table_of_classes_counts_the_predictions(tmp_path: Path) -> None:
    made = result()
    folder = write_result(tmp_path / "r", made)
    with open(folder / "per_class.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class"] for row in rows] == CLASSES
    hits = made.predictions.predicted == made.predictions.labels
    assert sum(int(row["correct"]) for row in rows) == int(hits.sum())
    shares = [float(row["accuracy"]) for row in rows]
    assert np.mean(shares) == pytest.approx(made.metrics["mean_per_class"].value, abs=1e-3)


@pytest.mark.parametrize(
    "other",
    [
        {"checkpoint": {**CHECKPOINT, "weights_sha256": "d"}},
        {"settings": {"epochs": 1, "knn_temperature": 0.07}},
        {"settings": {"knn_temperature": 0.07}},
    ],
)
def test_a_result_of_anything_else_is_kept_and_one_of_the_same_replaced(
    tmp_path: Path, other: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path / "r", result())
    moved = {**CHECKPOINT, "path": "of a run that was renamed"}
    write_result(tmp_path / "r", result(choice={"lr": 0.3}, checkpoint=moved))
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert capsys.readouterr().err == ""
    write_result(tmp_path / "r", result(**other, head=None))
    assert f"was of other {', '.join(other)}; kept as" in capsys.readouterr().err
    assert read_result(tmp_path / "r-1").choice == {"lr": 0.3}
    assert read_result(tmp_path / "r").head is None


def test_a_result_from_before_settings_is_read_and_kept(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", result())
    record = json.loads((folder / "result.json").read_text())
    del record["settings"]
    (folder / "result.json").write_text(json.dumps(record))
    assert read_result(folder).settings == {}
    write_result(folder, result())
    assert read_result(tmp_path / "r-1").settings == {}


def test_a_head_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", result())
    assert read_head(folder / "head.safetensors", classes=CLASSES).bias.shape == (3,)
    with pytest.raises(DataError, match="trained for 3 other classes, or the same in another"):
        read_head(folder / "head.safetensors", classes=CLASSES[::-1])


def test_predictions_that_grow_as_they_are_read_are_refused(tmp_path: Path) -> None:
    path = write_result(tmp_path / "r", result()) / "predictions.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez_compressed(path, **(arrays | {"names": np.zeros(1000, "U1000")}))
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"predictions\.npz is compressed, and may take any memory"):
        read_result(path.parent)


@pytest.mark.parametrize("stage", ["write_bytes", "write_head", "write_json"])
@pytest.mark.parametrize("other", [{}, {"settings": {"knn_temperature": 0.1}}])
def test_a_result_that_finds_no_room_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, other: dict[str, Any]
) -> None:
    write_result(tmp_path / "r", result(choice={"lr": 0.1}))
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(results, stage, full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_result(tmp_path / "r", result(choice={"lr": 0.3}, **other))
    assert Path(caught.value.filename).parent == tmp_path / "r"
    assert not Path(caught.value.filename).name.startswith(".")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before
    assert read_result(tmp_path / "r").choice == {"lr": 0.1}


def test_what_a_killed_evaluation_left_is_no_result(tmp_path: Path) -> None:
    write_result(tmp_path / "eval" / "r", result())
    fresh = short_temporary(tmp_path / "eval" / "r")
    shutil.copytree(tmp_path / "eval" / "r", fresh)
    (fresh / "result.json").rename(fresh / ".result.json")
    assert len([*results_in(tmp_path, left_out="this")]) == 1
    write_result(tmp_path / "eval" / "r", result())
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["r"]


def test_predictions_that_find_no_room_are_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_result(tmp_path / "r", result())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value.filename).endswith("predictions.npz")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", b"{}", "format is None"),
        ("result.json", b'{"format": 1}', "protocol: Field required"),
        ("result.json", b"{", "not valid JSON"),
        ("predictions.npz", b"no archive", r"predictions\.npz cannot be read"),
        ("predictions.npz", b"PK\3\4" + bytes(99), r"predictions\.npz cannot be read"),
        ("head.safetensors", b"\0" * 20, "cannot be read as a linear head"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    folder = write_result(tmp_path / "r", result())
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_result(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", ["(30", "(4398046511104,), }"])
def test_predictions_with_a_damaged_header_are_named(tmp_path: Path, shape: str) -> None:
    """NumPy fails as its tokeniser does, or asks for the memory that is stated."""
    path = write_result(tmp_path / "r", result()) / "predictions.npz"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    there, whole = b"(30,), }".ljust(24), members["ids.npy"]
    members["ids.npy"] = whole.replace(there, shape.encode().ljust(24))
    assert len(members["ids.npy"]) == len(whole) and members["ids.npy"] != whole
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match=r"predictions\.npz cannot be read"):
        read_result(path.parent)


def test_a_head_with_a_changed_weight_is_refused(tmp_path: Path) -> None:
    path = write_result(tmp_path / "r", result()) / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"head\.safetensors was changed or damaged"):
        read_head(path, classes=CLASSES)


def test_a_head_from_before_checksums_is_read(tmp_path: Path) -> None:
    path, about = tmp_path / "head.safetensors", {"classes_sha256": classes_sha256(CLASSES)}
    save_file({"weight": torch.ones(3, 5), "bias": torch.zeros(3)}, path, metadata=about)
    assert torch.equal(read_head(path, classes=CLASSES).weight, torch.ones(3, 5))


def test_no_result_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"result\.json does not exist"):
        read_result(tmp_path / "none")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", 5),
        ("headline", "top3"),
        ("data", None),
        ("data.classes", "cat"),
        ("data.classes", []),
        ("data.name", 7),
        ("data.val_count", "30"),
        ("checkpoint.path", None),
        ("checkpoint.step", "last"),
        ("preprocessing.size_px", 0),
        ("preprocessing.size_px", 32.5),
        ("preprocessing.mean", 0.5),
        ("preprocessing.std", [0]),
        ("settings", [100]),
        ("settings.epochs", "100"),
        ("metrics.top1", 81.2),
        ("metrics.top1.low", None),
        ("metrics.top5", {"value": 1.0, "low": 0.0}),
        ("knn", []),
        ("knn.20", {}),
        ("choice", "best"),
        ("trials", {"lr": 1}),
        ("created", 2026),
        ("seed", True),
        ("versions", {"torch": 2}),
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, key: str, value: object) -> None:
    folder = write_result(tmp_path / "r", result())
    tree = json.loads((folder / "result.json").read_text())
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        node = node[part]
    node[last] = value
    (folder / "result.json").write_text(json.dumps(tree))
    with pytest.raises(
        DataError, match=rf"result\.json: {key}.*Run the evaluation again"
    ) as caught:
        read_result(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", lambda a: a.astype(float)),
        ("labels", lambda a: a + 2),
        ("labels", lambda a: a[:29]),
        ("predicted", lambda a: a - 2),
        ("predicted", lambda a: a[:, None]),
        ("top5", lambda a: a[:, :3]),
        ("probability", lambda a: a.astype(str)),
        ("ids", lambda a: a[:, None]),
        ("ids", lambda a: a[:0]),
        ("names", lambda a: np.arange(30)),
    ],
)
def test_predictions_of_another_kind_are_named(tmp_path: Path, name: str, change: Any) -> None:
    folder = write_result(tmp_path / "r", result())
    with np.load(folder / "predictions.npz") as file:
        arrays = {each: file[each] for each in file.files}
    np.savez(folder / "predictions.npz", **(arrays | {name: change(arrays[name])}))
    with pytest.raises(DataError, match=r"predictions\.npz: \w+ (is|has) .*Run the evaluation"):
        read_result(folder)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.zeros(15), torch.zeros(3)),
        (torch.zeros(3, 5), torch.zeros(4)),
        (torch.zeros(3, 5), torch.zeros(3, 1)),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 5, dtype=torch.complex64), torch.zeros(3)),
        (torch.zeros(3, 0), torch.zeros(3)),
    ],
)
def test_tensors_that_are_no_linear_head_are_refused(
    tmp_path: Path, weight: torch.Tensor, bias: torch.Tensor
) -> None:
    path = tmp_path / "head.safetensors"
    about = {"classes_sha256": classes_sha256(CLASSES)}
    save_file({"weight": weight, "bias": bias}, path, metadata=about)
    with pytest.raises(DataError, match=r"head\.safetensors holds .*which are no linear head"):
        read_head(path, classes=CLASSES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_of_another_precision_gives_scores_all_the_same(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    path, about = tmp_path / "head.safetensors", {"classes_sha256": classes_sha256(CLASSES)}
    found = {"weight": torch.ones(3, 5).to(dtype), "bias": torch.ones(3).to(dtype)}
    save_file(found, path, metadata=about)
    assert read_head(path, classes=CLASSES)(torch.ones(1, 5)).tolist() == [[6.0] * 3]
    save_file(found, path, metadata=about | {"sha256": "of float32"})
    with pytest.raises(DataError, match="changed or damaged"):
        read_head(path, classes=CLASSES)


def test_a_head_with_rows_for_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    write_head(path, Head(torch.zeros(2, 5), torch.zeros(2)), classes=CLASSES)
    with pytest.raises(DataError, match="trained for 2 other classes"):
        read_head(path, classes=CLASSES)


def test_a_data_set_of_a_long_name_leaves_room_for_its_results(tmp_path: Path) -> None:
    """Also for locks, temporary files and results that are kept beside it."""
    folders = [
        result_folder(tmp_path, data=name, protocol="imagenet-random")
        for name in ("x" * 250, "x" * 249 + "y", "ä" * 125, "\udcff" * 250)
    ]
    assert len(set(folders)) == 4
    for folder in folders:
        assert len(os.fsencode(folder.name)) < 200
        write_result(folder, result())
    assert result_folder(tmp_path, data="pets", protocol="p").name == "pets-p"
