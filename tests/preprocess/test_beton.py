"""From a folder to containers that plain FFCV reads, with nothing lost silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from PIL import Image

from harl_fast.data.container.fields import BitMaskField, resize_mask, unpack_mask
from harl_fast.data.container.index import check_container
from harl_fast.data.container.manifest import read_manifest, sample_name
from harl_fast.data.container.names import read_names
from harl_fast.data.reader import read_samples
from harl_fast.demoset import scenes_of, set_name
from harl_fast.errors import DataError, OutputError
from preprocess import beton
from preprocess.demo.scenes import SCENES
from preprocess.verify import main as verify_main
from tests.preprocess.support import convert_or_die, image_folder, photo, same_colours, save

SIZE = 16


def write(data: Path, out: Path, *options: str) -> None:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", str(SIZE), "--workers", "2"]
    assert beton.main([*fixed, *options]) == 0


def visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def report(out: Path, split: str = "train") -> dict[str, list[dict[str, str]]]:
    content: dict[str, list[dict[str, str]]] = json.loads(
        (out / f"{split}.report.json").read_text()
    )
    return content


FILES = [
    f"{split}.{suffix}"
    for split in ("train", "val")
    for suffix in ("beton", "json", "names.txt", "prints.npy", "report.json", "sums.npy")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound images of many kinds and bad ones, and masks for some of them."""
    root = image_folder(tmp_path_factory.mktemp("set"), classes=3, train=7, val=2)
    train = root / "train"
    save(photo(50, height=40, width=200), train / "class1" / "wide.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    save(photo(51), train / "class1" / "turned.jpg", quality=95, exif=turned)
    (train / "class0" / "empty.jpg").touch()
    (train / "class0" / "notes.txt").write_text("not an image")
    half = (train / "class0" / "0.jpg").read_bytes()[:900]
    (train / "class2" / "half.jpg").write_bytes(half)
    left = np.zeros((40, 200), np.uint8)
    left[:, :100] = 1
    save(left, root / "masks/train/class1/wide.png")
    top = np.zeros((48, 64), np.uint8)
    top[:12] = 255
    save(top, root / "masks/train/class1/turned.png")
    save(np.ones((9, 200), np.uint8), root / "masks/train/class0/0.png")  # not the image's shape
    return root


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("out")
    write(folder, target, "--masks", str(folder / "masks"), "--max-resolution", "128")
    return target


def test_all_files_are_there_and_checked(out: Path) -> None:
    assert visible(out) == sorted(FILES)
    for split in ("train", "val"):
        check_container(out / f"{split}.beton", read_manifest(out / f"{split}.beton"))
    assert verify_main([str(out / "train.beton"), str(out / "val.beton")]) == 0


def test_the_manifest_tells_what_is_inside(folder: Path, out: Path) -> None:
    manifest = read_manifest(out / "train.beton")
    assert manifest.count == 3 * 7 + 2 and manifest.class_counts == [7, 9, 7]
    assert manifest.classes == ["class0", "class1", "class2"]
    assert manifest.source == folder.name
    assert manifest.skipped == 3
    facts = manifest.store
    assert (facts["kind"], facts["max_resolution"], facts["quality"]) == ("jpg", 128, 90)
    assert manifest.mask["method"] == "png" and manifest.mask["supervision"] == "unknown"
    assert manifest.mask["fallback"]["method"] == "heuristic"
    assert manifest.mask["fallbacks"] == manifest.count - 2
    samples = read_samples(out / "train.beton", range(manifest.count))
    shares = [sample.mask.mean() for sample in samples]
    assert manifest.mask["coverage_mean"] == pytest.approx(np.mean(shares))
    validation = read_manifest(out / "val.beton")
    assert validation.mask["method"] == "heuristic" and validation.mask["supervision"] == "none"


def test_bad_files_are_reported_with_reasons(out: Path) -> None:
    reasons = {item["path"]: item["reason"] for item in report(out)["skipped"]}
    assert reasons.keys() == {
        "train/class0/empty.jpg",
        "train/class0/notes.txt",
        "train/class2/half.jpg",
    }
    assert reasons["train/class2/half.jpg"].startswith("damaged: libjpeg warns: Premature end")
    replaced = {item["path"]: item["reason"] for item in report(out)["masks_replaced"]}
    assert "200 x 9 pixels" in replaced["train/class0/0.jpg"]
    assert "FileNotFoundError" in replaced["train/class2/1.jpg"]
    assert all(reason.endswith("; heuristic serves") for reason in replaced.values())


def test_samples_are_the_files_in_order_with_their_pixels(folder: Path, out: Path) -> None:
    samples = read_samples(out / "train.beton", range(read_manifest(out / "train.beton").count))
    names = [sample.name for sample in samples]
    assert names == sorted(names) and names[0] == sample_name(out / "train.beton", 0)
    for sample in samples:
        with Image.open(folder / sample.name) as image:
            expected = np.asarray(image.convert("RGB"))
        if sample.name.endswith("turned.jpg"):
            expected = np.rot90(expected, -1)
        if sample.name.endswith("wide.png"):
            expected = np.asarray(Image.fromarray(expected).resize((128, 25), Image.Resampling.BOX))
        assert same_colours(sample.image, expected, mean=4.0)  # quality 90, a second encoding
        assert sample.label == int(sample.name.split("/")[1].removeprefix("class"))


def test_masks_lie_in_the_frame_of_the_stored_image(out: Path) -> None:
    names = (out / "train.names.txt").read_text().splitlines()
    ids = [names.index(f"train/class1/{name}") for name in ("wide.png", "turned.jpg")]
    wide, turned = read_samples(out / "train.beton", ids)
    left = np.zeros((SIZE, SIZE), np.bool_)
    left[:, : SIZE // 2] = True
    np.testing.assert_array_equal(wide.mask, left)
    # Orientation 6: the stored top lies on the right of the upright picture.
    right = np.zeros((48, 64), np.bool_)
    right[:12] = True
    np.testing.assert_array_equal(turned.mask, resize_mask(np.rot90(right, -1), size=SIZE))


PLAIN_FFCV = """
import sys, numpy
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from harl_fast.data.container.fields import BitMaskField
beton, side, out = sys.argv[1:]
loader = Loader(
    beton,
    batch_size=3,
    num_workers=1,
    order=OrderOption.SEQUENTIAL,
    pipelines={
        "image": [CenterCropRGBImageDecoder((int(side), int(side)), 1.0), ToTensor()],
        "label": [IntDecoder(), ToTensor()],
        "mask": None,
    },
    custom_fields={"mask": BitMaskField},
)
images, labels = zip(*[(batch[0].numpy().copy(), batch[1].numpy().copy()) for batch in loader])
numpy.savez(out, images=numpy.concatenate(images), labels=numpy.concatenate(labels))
"""
"""FFCV's own loader, which changes a type of numba's for its whole process: see `data.epoch`."""


def test_plain_ffcv_loads_the_images(folder: Path, out: Path, tmp_path: Path) -> None:
    side, found = 48, tmp_path / "found.npz"
    command = [sys.executable, "-c", PLAIN_FFCV, out / "val.beton", str(side), found]
    # Compiled for half as long, to the same pixels.
    env = os.environ | {"NUMBA_OPT": "0"}
    subprocess.run(command, check=True, timeout=600, env=env)
    with np.load(found) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert labels.ravel().tolist() == [0, 0, 1, 1, 2, 2]
    names = (out / "val.names.txt").read_text().splitlines()
    for pixels, name in zip(images, names, strict=True):
        with Image.open(folder / name) as image:
            box = (image.width - side) // 2, (image.height - side) // 2
            if image.height != side:
                continue  # a crop of another size is resized, which is not the question here
            expected = np.asarray(image.crop((box[0], box[1], box[0] + side, box[1] + side)))
        assert same_colours(pixels, expected, mean=4.0)


def test_the_image_field_on_disk_is_ffcvs_own(out: Path) -> None:
    reader = Reader(str(out / "train.beton"), {"mask": BitMaskField})
    assert reader.field_names == ["image", "mask", "label"]
    assert reader.field_descriptors["type_id"].tolist() == [2, 255, 1]
    assert len(reader.alloc_table) == 2 * len(reader.metadata)
    bits = np.fromfile(out / "train.beton", np.uint8)
    for row in reader.metadata["f1"]:
        start = int(row["data_ptr"])
        assert unpack_mask(bits[start : start + SIZE * SIZE // 8], size=SIZE).shape == (SIZE, SIZE)


def test_the_bytes_do_not_depend_on_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        write(folder, tmp_path / workers, "--workers", workers)
    first, second = (read_manifest(tmp_path / n / "train.beton") for n in ("1", "3"))
    assert first.beton_sha256 == second.beton_sha256
    assert first.mask["fallbacks"] == 0 and first.mask["method"] == "heuristic"


def test_a_worker_that_a_file_kills_is_an_error_and_leaves_no_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = image_folder(tmp_path / "set")
    save(photo(0), data / "val" / "class1" / "killer.jpg")
    monkeypatch.setattr("preprocess.build.convert_and_keep", convert_or_die)
    with pytest.raises(DataError, match=r"SIGSEGV.*val/class0/0\.jpg to val/class1/killer\.jpg"):
        write(data, tmp_path / "out")
    assert visible(tmp_path / "out") == []
    assert "1 of 1 shards of train are finished and stay" in capfd.readouterr().err


def test_a_failed_run_leaves_the_old_containers(tmp_path: Path) -> None:
    data, target = image_folder(tmp_path / "set"), tmp_path / "out"
    write(data, target)
    before = read_manifest(target / "train.beton")
    for path in (data / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 4 images of val could .*or give oth"):
        write(data, target)
    assert visible(target) == sorted(FILES)
    check_container(target / "train.beton", before)


def test_that_another_set_is_replaced_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = image_folder(tmp_path / "first"), image_folder(tmp_path / "second")
    write(first, tmp_path / "out")
    write(first, tmp_path / "out", "--max-resolution", "40")
    assert "are replaced" not in capsys.readouterr().out
    write(second, tmp_path / "out")
    told, _, after = capsys.readouterr().out.partition("images in train) are replaced at the end")
    assert f"the containers of first in {tmp_path / 'out'} (" in told
    assert "give another --out to keep them" in after and "second" not in told.splitlines()[-1]


def test_names_that_are_no_text_reach_the_reports_escaped(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set")
    (data / "train" / "class0" / "bad\udcff.jpg").touch()
    (data / "train" / "class0" / "0.jpg").rename(data / "train" / "class0" / "new\nline\udcff.jpg")
    write(data, tmp_path / "out")
    assert report(tmp_path / "out")["skipped"][0]["path"] == r"train/class0/bad\udcff.jpg"
    names = (tmp_path / "out" / "train.names.txt").read_text().split("\n")
    assert names[3] == r"train/class0/new\nline\udcff.jpg" and len(names) == 9
    (data / "train" / "class0").rename(data / "train" / "class\udcff")
    with pytest.raises(DataError, match=r"does not print \(class\\udcff\)"):
        write(data, tmp_path / "out")


def test_an_output_inside_the_images_is_refused(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set")
    for inside in (data, data / "train" / "out"):
        with pytest.raises(DataError, match="choose a folder outside"):
            write(data, inside)


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"--out .*file/out cannot be written: .*Not a directory"):
        write(image_folder(tmp_path / "set"), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "x", "--data", "y", "--dataset", "cifar10"],
        ["--out", "x", "--dataset", "mnist"],
        ["--out", "x", "--mask-size", "20"],
        ["--out", "x", "--quality", "0"],
        ["--out", "x", "--masks", "y"],
        ["--out", "x", "--mask-method", "hueristic"],
        ["--out", "x", "--data", "y", "--demo-images", "50"],
        ["--out", "x", "--dataset", "cifar10", "--demo-seed", "1"],
        ["--out", "x", "--dataset", "cifar10", "--val-seed", "1"],
        ["--out", "x", "--data", "y", "--new-classes"],
        ["--out", "x", "--label-column", "y"],
        ["--data", "y"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        beton.parse(arguments)
    assert caught.value.code == 2


def test_the_help_fits_a_tall_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        beton.parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 70 and any("--masks TREE" in line for line in lines)


def test_without_data_a_demo_set_is_drawn_and_written(tmp_path: Path) -> None:
    options = ["--demo-images", "40", "--demo-size", "48"]
    assert beton.main(["--out", str(tmp_path), "--workers", "2", *options]) == 0
    manifest = read_manifest(tmp_path / "train.beton")
    assert manifest.count == 30 and manifest.source == set_name(40, 48, seed=0)
    assert Counter(scenes_of(read_names(tmp_path / "train.beton"))) == dict.fromkeys(SCENES, 3)
    assert manifest.mask["method"] == "png" and manifest.mask["fallbacks"] == 0
    assert visible(tmp_path) == sorted([*FILES, "source"])


def test_verify_names_the_damaged_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(image_folder(tmp_path / "set"), tmp_path / "out")
    path = tmp_path / "out" / "train.beton"
    reader = Reader(str(path), {"mask": BitMaskField})
    with open(path, "r+b") as stream:
        stream.seek(int(reader.metadata["f0"][5]["data_ptr"]))
        stream.write(bytes(200))
    assert verify_main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert "1 of 8 samples are damaged" in shown
    assert "sample 5 (train/class1/1.jpg): image does not decode, image bytes changed" in shown


def test_workers_say_nothing_of_how_they_were_started(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "in")
    command = [sys.executable, "-m", "preprocess.beton", "--data", str(data), "--workers", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--mask-method", "full"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Warning" not in done.stderr
