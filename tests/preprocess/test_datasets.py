"""torchvision's data sets from files that are already there, in each one's own layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from PIL import Image

from harl_fast.data.container.manifest import read_manifest
from harl_fast.errors import DataError
from harl_fast.eval.protocol import split_kind
from preprocess import beton
from preprocess.sources import torchvision_source
from tests.preprocess.support import image_folder


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (len(path.name) % 255, 30, 60)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def food101(root: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        names = {c: [f"{c}/{split}{i}" for i in range(count)] for c in ("apple_pie", "waffles")}
        text(root / f"food-101/meta/{split}.json", json.dumps(names))
        for each in names.values():
            for name in each:
                picture(root / f"food-101/images/{name}.jpg")


def dtd(root: Path) -> None:
    for split, count in (("train", 2), ("val", 1), ("test", 2)):
        names = [f"{c}/{c}_{split}{i}.jpg" for c in ("banded", "woven") for i in range(count)]
        text(root / f"dtd/dtd/labels/{split}1.txt", *names)
        for name in names:
            picture(root / f"dtd/dtd/images/{name}")


def cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    scipy.io.savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(["AM", "BMW"], "O")})
    files = (("cars_train", "devkit/cars_train_annos", 6), ("cars_test", "cars_test_annos", 4))
    for folder, table, count in files:
        kind = [("fname", "O"), ("class", "i4")]
        rows = np.array([(f"{i:05d}.jpg", i % 2 + 1) for i in range(count)], kind)
        end = "" if folder == "cars_train" else "_withlabels"
        scipy.io.savemat(base / f"{table}{end}.mat", {"annotations": rows})
        for i in range(count):
            picture(base / folder / f"{i:05d}.jpg")


def sun397(root: Path) -> None:
    text(root / "SUN397/ClassName.txt", "/a/abbey", "/b/bar/indoor")
    for place in ("a/abbey", "b/bar/indoor"):
        for i in range(5):
            picture(root / f"SUN397/{place}/sun_{i:03d}.jpg")


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    for label in (0, 1):
        for i in range(3):
            picture(base / f"GTSRB/Training/{label:05d}/{i:05d}.ppm")
    names = [f"{i:05d}.ppm" for i in range(4)]
    for name in names:
        picture(base / "GTSRB/Final_Test/Images" / name)
    rows = [f"{name};{i % 2}" for i, name in enumerate(names)]
    text(base / "GT-final_test.csv", "Filename;ClassId", *rows)


def eurosat(root: Path) -> None:
    for name in ("Forest", "River"):
        for i in range(5):
            picture(root / f"eurosat/2750/{name}/{name}_{i}.jpg")


def aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b/data"
    text(base / "variants.txt", "707-320", "F/A-18")
    for split, count in (("trainval", 3), ("test", 2)):
        rows = [(f"{split}{c}{i}", c) for c in ("707-320", "F/A-18") for i in range(count)]
        rows = [(name.replace("/", ""), c) for name, c in rows]
        text(base / f"images_variant_{split}.txt", *(f"{name} {c}" for name, c in rows))
        for name, _ in rows:
            picture(base / f"images/{name}.jpg")


def caltech101(root: Path) -> None:
    for name in ("BACKGROUND_Google", "ant", "beaver"):
        for i in range(1, 6):
            picture(root / f"caltech101/101_ObjectCategories/{name}/image_{i:04d}.jpg")


def svhn(root: Path) -> None:
    for split, count in (("train", 6), ("test", 4)):
        labels = np.array([[10 if i % 2 else 1] for i in range(count)])  # 10 stands for 0
        pixels = np.arange(32 * 32 * 3 * count).reshape(32, 32, 3, count).astype(np.uint8)
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels})


def pcam(root: Path) -> None:
    (root / "pcam").mkdir()
    for split, count in (("train", 6), ("test", 4)):
        for what, key, shape in (("x", "x", (96, 96, 3)), ("y", "y", (1, 1, 1))):
            path = root / f"pcam/camelyonpatch_level_2_split_{split}_{what}.h5"
            with h5py.File(path, "w") as file:
                file[key] = np.arange(count * np.prod(shape)).reshape(count, *shape) % 2


def cifar(folder: Path, key: str, counts: dict[str, int], **meta: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True)
    for name, count in counts.items():
        data = np.arange(count * 3072, dtype=np.uint8).reshape(count, 3072)
        batch = {"data": data, key: [i % 2 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    for name, names in meta.items():
        (folder / name.replace("_", ".")).write_bytes(pickle.dumps(names))


def cifar10(root: Path) -> None:
    counts = {f"data_batch_{n}": 2 for n in range(1, 6)} | {"test_batch": 4}
    names = {"label_names": ["airplane", "automobile"]}
    cifar(root / "cifar-10-batches-py", "labels", counts, batches_meta=names)


def cifar100(root: Path) -> None:
    names = {"fine_label_names": ["apple", "aquarium_fish"]}
    cifar(root / "cifar-100-python", "fine_labels", {"train": 6, "test": 4}, meta=names)


def stl10(root: Path) -> None:
    text(base := root / "stl10_binary/class_names.txt", "airplane", "bird")
    for split, count in (("train", 6), ("test", 4)):
        labels = (np.arange(count) % 2 + 1).astype(np.uint8)
        labels.tofile(base.with_name(f"{split}_y.bin"))
        pixels = np.arange(count * 3 * 96 * 96).astype(np.uint8)
        pixels.tofile(base.with_name(f"{split}_X.bin"))


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for split, count in (("trainval", 3), ("test", 2)):
        breeds = (("Abyssinian", 1, 1), ("great_pyrenees", 2, 2))
        rows = [
            (f"{name}_{split}{i}", label, kind)
            for name, label, kind in breeds
            for i in range(count)
        ]
        lines = (f"{name} {label} {kind} 1" for name, label, kind in rows)
        text(base / f"annotations/{split}.txt", *lines)
        for name, *_ in rows:
            picture(base / f"images/{name}.jpg")


def flowers102(root: Path) -> None:
    base = root / "flowers-102"
    for number in range(1, 11):
        picture(base / f"jpg/image_{number:05d}.jpg")
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.arange(10) % 2 + 1})
    parts = {"trnid": np.arange(1, 5), "valid": np.arange(5, 7), "tstid": np.arange(7, 11)}
    scipy.io.savemat(base / "setid.mat", parts)


def imagenette(root: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n02102040"):
            for i in range(count):
                picture(root / f"imagenette2-320/{split}/{wnid}/{wnid}_{i}.JPEG")


LAYOUTS: list[tuple[Callable[[Path], None], list[str], int, int]] = [
    (food101, ["apple_pie", "waffles"], 6, 4),
    (dtd, ["banded", "woven"], 6, 4),
    (cars, ["AM", "BMW"], 6, 4),
    (sun397, ["abbey", "bar-indoor"], 8, 2),
    (gtsrb, ["sign00", "sign01"], 6, 4),
    (eurosat, ["Forest", "River"], 8, 2),
    (aircraft, ["707-320", "F-A-18"], 6, 4),
    (caltech101, ["ant", "beaver"], 8, 2),
    (svhn, ["0", "1"], 6, 4),
    (pcam, ["normal", "tumour"], 6, 4),
    (cifar10, ["airplane", "automobile"], 10, 4),
    (cifar100, ["apple", "aquarium_fish"], 6, 4),
    (stl10, ["airplane", "bird"], 6, 4),
    (pets, ["Abyssinian", "Great Pyrenees"], 6, 4),
    (flowers102, ["flower001", "flower002"], 6, 4),
    (imagenette, ["n01440764", "n02102040"], 6, 4),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout[0].__name__)
def test_files_that_are_there_are_read_in_torchvisions_layout(
    layout: tuple[Callable[[Path], None], list[str], int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, classes, train, val = layout
    for kind in ("svhn", "cifar", "stl10", "flowers102"):  # which know their files' digests
        module = getattr(torchvision.datasets, kind)
        monkeypatch.setattr(module, "check_integrity", lambda *_, **__: True)
    write(tmp_path)
    source = torchvision_source(write.__name__, tmp_path / "none", root=tmp_path)
    assert (source.name, source.provider) == (write.__name__, "torchvision")
    assert source.classes[:2] == classes
    for split, count in (("train", train), ("val", val)):
        part = source.splits[split]
        assert np.bincount(part.labels).tolist() == [count // 2] * 2
        for row in range(count):
            image = part.image(row)
            assert image.shape[2] == 3 if isinstance(image, np.ndarray) else image.is_file()
            if isinstance(image, Path) and classes[0] in image.as_posix():
                assert part.labels[row] == 0
    assert any("published are" in note for note in source.notes)
    own = write in (sun397, eurosat, caltech101)
    assert any("no official split" in note for note in source.notes) == own
    assert not (tmp_path / "none").exists()


def test_a_split_is_official_by_its_library_not_by_a_folders_name(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    folder = image_folder(tmp_path / "aircraft", train=4, val=2)
    aircraft(tmp_path / "files")
    common = ["--mask-method", "center", "--mask-size", "16", "--workers", "1", "--out"]
    files = ["--dataset", "aircraft", "--dataset-root", str(tmp_path / "files")]
    assert beton.main([*files, *common, str(tmp_path / "theirs")]) == 0
    assert beton.main(["--data", str(folder), *common, str(tmp_path / "own")]) == 0
    theirs, own = (read_manifest(tmp_path / each / "train.beton") for each in ("theirs", "own"))
    assert theirs.source == own.source == "aircraft"
    assert (split_kind(theirs), split_kind(own)) == ("official", "own split")


@pytest.mark.parametrize("name", ["food101", "cars", "svhn", "caltech101", "cifar10"])
def test_a_root_without_the_files_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} does not hold {name}") as caught:
        torchvision_source(name, tmp_path / "none", root=tmp_path)
    assert "\n" not in str(caught.value)
