"""Containers of every store hold the files' pictures, and plain FFCV reads what it can."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter
from PIL import Image

from harl_fast.data.container.fields import (
    MODE_JPG,
    MODE_RAW,
    MODE_YUV420,
    BitMaskField,
    StoredMask,
    open_reader,
)
from harl_fast.data.container.index import check_container
from harl_fast.data.container.manifest import read_manifest
from preprocess import beton
from preprocess.convert import Sample
from preprocess.encode import restart_interval
from preprocess.images.arrays import Pixels
from preprocess.writer import container_writer
from tests.preprocess.support import image_folder, photo, same_colours, save

STORES = ("jpg", "passthrough", "raw", "yuv420", "mix:0.5", "mix:0.5:yuv420")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs, and pictures of awkward sizes and kinds among them."""
    root = image_folder(tmp_path_factory.mktemp("set"), classes=2, train=6, val=2)
    kind = root / "train" / "class1"
    save(photo(60)[:23, :17], kind / "odd.jpg", quality=95)
    save(np.full((1, 1, 3), 9, np.uint8), kind / "dot.png")
    save(photo(61)[:1, :40], kind / "line.png")
    save(photo(62)[..., 0], kind / "grey.jpg", quality=95)
    save(photo(63), kind / "progressive.jpg", quality=95, progressive=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    save(photo(64), kind / "turned.jpg", quality=95, exif=turned)
    save(photo(65, height=100, width=200), kind / "wide.jpg", quality=95)
    whole = (root / "train/class0/0.jpg").read_bytes()
    (kind / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def outs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for store in STORES:
        out = tmp_path_factory.mktemp("out")
        options = ["--max-resolution", "128", "--mask-method", "full", "--workers", "1"]
        arguments = ["--data", str(folder), "--out", str(out), "--store", store, *options]
        assert beton.main(arguments) == 0
        found[store] = out / "train.beton"
    return found


def stored(path: Path) -> list[tuple[int, bytes, tuple[int, int]]]:
    """Return each sample's mode, bytes and (height, width), by FFCV's reader alone."""
    reader, data = open_reader(path), path.read_bytes()
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    samples = []
    for row in reader.metadata["f0"]:
        start = int(row["data_ptr"])
        content = data[start : start + int(sizes[row["data_ptr"]])]
        samples.append((int(row["mode"]), content, (int(row["height"]), int(row["width"]))))
    return samples


def picture(mode: int, content: bytes, size: tuple[int, int]) -> Pixels:
    """Return a stored picture in RGB, through Pillow."""
    if mode == MODE_JPG:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    if mode == MODE_RAW:
        return np.frombuffer(content, np.uint8).reshape(*size, 3)
    height, width = size
    luma = np.frombuffer(content, np.uint8, height * width).reshape(size)
    chroma = np.frombuffer(content, np.uint8, offset=height * width)
    planes = [
        plane.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        for plane in chroma.reshape(2, -(-height // 2), -(-width // 2))
    ]
    return np.asarray(Image.fromarray(np.dstack([luma, *planes]), "YCbCr").convert("RGB"))


def expected(path: Path) -> Pixels:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        if path.name == "wide.jpg":
            rgb = rgb.resize((128, 64), Image.Resampling.BOX)
        return np.rot90(rgb, -1) if path.name == "turned.jpg" else np.asarray(rgb)


def names(path: Path) -> list[str]:
    return path.with_suffix(".names.txt").read_text().splitlines()


@pytest.mark.parametrize("store", STORES)
def test_every_store_holds_the_pictures(folder: Path, outs: dict[str, Path], store: str) -> None:
    path = outs[store]
    check_container(path, read_manifest(path))
    assert len(names(path)) == 12 + 7  # the cut file is left out of all of them
    for name, sample in zip(names(path), stored(path), strict=True):
        assert same_colours(picture(*sample), expected(folder / name), mean=4.0), name


def test_raw_is_exact(folder: Path, outs: dict[str, Path]) -> None:
    for name, (mode, content, size) in zip(names(outs["raw"]), stored(outs["raw"]), strict=True):
        assert mode == MODE_RAW
        if not name.endswith("wide.jpg"):  # area averaging, Pillow's and OpenCV's
            np.testing.assert_array_equal(picture(mode, content, size), expected(folder / name))


def test_the_files_own_bytes_pass_through(folder: Path, outs: dict[str, Path]) -> None:
    path = outs["passthrough"]
    again = {"dot.png", "line.png", "progressive.jpg", "turned.jpg", "wide.jpg"}
    for name, (mode, content, _) in zip(names(path), stored(path), strict=True):
        assert mode == MODE_JPG
        assert (content == (folder / name).read_bytes()) == (Path(name).name not in again)
    facts = read_manifest(path).store
    assert facts["passed_through"] == 12 + 2 and sum(facts["reencoded"].values()) == len(again)
    assert facts["reencoded"]["progressive"] == 1 and not facts["restart_markers"]


def test_the_default_store_has_restart_markers(outs: dict[str, Path]) -> None:
    for _, content, (_, width) in stored(outs["jpg"]):
        start = content.index(b"\xff\xdd\x00\x04") + 4
        assert int.from_bytes(content[start : start + 2], "big") == restart_interval(width)


@pytest.mark.parametrize(
    ("store", "mode"), [("mix:0.5", MODE_RAW), ("mix:0.5:yuv420", MODE_YUV420)]
)
def test_a_mix_is_the_jpg_and_the_open_store_sample_by_sample(
    outs: dict[str, Path], store: str, mode: int
) -> None:
    open_store = "raw" if mode == MODE_RAW else "yuv420"
    both = {MODE_JPG: stored(outs["jpg"]), mode: stored(outs[open_store])}
    mixed = stored(outs[store])
    assert {sample[0] for sample in mixed} == {MODE_JPG, mode}
    for number, sample in enumerate(mixed):
        assert sample == both[sample[0]][number]


@pytest.mark.parametrize("store", STORES)
def test_the_manifest_counts_what_is_stored(outs: dict[str, Path], store: str) -> None:
    facts, samples = read_manifest(outs[store]).store, stored(outs[store])
    assert facts["kind"] == store and facts["max_resolution"] == 128 and facts["quality"] == 90
    assert facts["pixels"] == sum(height * width for _, _, (height, width) in samples)
    for mode, name in ((MODE_JPG, "jpg"), (MODE_RAW, "raw"), (MODE_YUV420, "yuv420")):
        sizes = [len(content) for found, content, _ in samples if found == mode]
        counted = facts["modes"].get(name, {"count": 0, "bytes": 0})
        assert counted == {"count": len(sizes), "bytes": sum(sizes)}


PLAIN_FFCV = """
import sys, numpy
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from harl_fast.data.container.fields import BitMaskField
beton, side, out = sys.argv[1:]
crop = CenterCropRGBImageDecoder((int(side), int(side)), 1.0)
loader = Loader(
    beton,
    batch_size=4,
    num_workers=1,
    order=OrderOption.SEQUENTIAL,
    pipelines={"image": [crop, ToTensor()], "label": None, "mask": None},
    custom_fields={"mask": BitMaskField},
)
numpy.save(out, numpy.concatenate([batch[0].numpy().copy() for batch in loader]))
"""


def test_plain_ffcv_reads_jpeg_and_raw_side_by_side(
    folder: Path, outs: dict[str, Path], tmp_path: Path
) -> None:
    path = outs["mix:0.5"].with_name("val.beton")
    assert {sample[0] for sample in stored(path)} == {MODE_JPG, MODE_RAW}
    command = [sys.executable, "-c", PLAIN_FFCV, str(path), "48", str(tmp_path / "found.npy")]
    subprocess.run(command, check=True, timeout=600)
    found = np.load(tmp_path / "found.npy")
    compared = 0
    for pixels, name in zip(found, names(path), strict=True):
        whole = expected(folder / name)
        if whole.shape[0] == 48:  # a crop of another size is resized, which is not the question
            left = (whole.shape[1] - 48) // 2
            assert same_colours(pixels, whole[:, left : left + 48], mean=4.0)
            compared += 1
    assert compared >= 2


def test_plain_ffcv_refuses_what_it_would_misread(outs: dict[str, Path]) -> None:
    for store in ("yuv420", "mix:0.5:yuv420"):
        with pytest.raises(ValueError, match="custom field image"):
            Reader(str(outs[store]), {"mask": BitMaskField})


def test_a_page_holds_the_largest_sample(tmp_path: Path) -> None:
    # 3 * 1660^2 bytes and their headers fit in 8 MiB, but not with a mask of 1024 bits a side.
    for mask_size, page in ((64, 1 << 23), (1024, 1 << 24)):
        writer = container_writer(tmp_path / "x", max_resolution=1660, mask_size=mask_size)
        assert writer.page_size == page


def test_every_byte_lies_where_ffcvs_own_writer_puts_it(tmp_path: Path) -> None:
    rng, mask_size = np.random.default_rng(0), 128
    # The second leaves no room for its mask in the first page of 8 MiB, the fourth none at all.
    sizes = (5_000_000, 3_386_000, 10, 6_000_000, 8_386_560, 1, 70_000)
    samples = [
        Sample(
            name=str(index),
            label=index,
            image=rng.integers(0, 256, size, np.uint8),
            image_bytes=size,
            height=index + 1,
            width=300 + index,
            mask=rng.bytes(mask_size**2 // 8),
        )
        for index, size in enumerate(sizes)
    ]

    def encode(destination: Any, sample: Sample, malloc: Callable[[int], Any]) -> None:
        for name in ("mode", "height", "width"):
            destination[name] = getattr(sample, name)
        destination["data_ptr"], storage = malloc(len(sample.image))
        storage[:] = sample.image

    image = RGBImageField()
    image.encode = encode
    fields = {"image": image, "mask": BitMaskField(mask_size), "label": IntField()}
    rows = [
        (each, StoredMask(np.frombuffer(each.mask, np.uint8), each.height, each.width), each.label)
        for each in samples
    ]
    theirs, ours = tmp_path / "theirs.beton", tmp_path / "ours.beton"
    writer = DatasetWriter(str(theirs), fields, page_size=1 << 23, num_workers=1)
    writer.from_indexed_dataset(rows)
    container_writer(ours, max_resolution=48, mask_size=mask_size).write(samples, capacity=7)
    assert theirs.read_bytes() == ours.read_bytes()


def test_a_wrong_store_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        beton.parse(["--out", "x", "--store", "mix:2"])
    assert caught.value.code == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_a_container_is_written_without_shared_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container /dev/shm may be small or read-only; one process writes."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/dev/shm/pym")

    monkeypatch.setattr("multiprocessing.heap.Arena.__init__", refused)
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refused)
    monkeypatch.setattr("multiprocessing.shared_memory.SharedMemory.__init__", refused)
    options = ["--mask-method", "full", "--workers", "1"]
    assert beton.main(["--data", str(folder), "--out", str(tmp_path), *options]) == 0
    assert read_manifest(tmp_path / "train.beton").count > 6


def test_numba_does_without_the_lock_that_needs_shared_memory() -> None:
    """Its warning has escape codes and four lines, and asks for nothing that this program lacks."""
    program = """
import multiprocessing
def refused(*_):
    raise OSError(30, "Read-only file system")
multiprocessing.get_context = refused
from harl_fast.jit import njit
import numba, numpy
@njit(parallel=True)
def double(a):
    for i in numba.prange(len(a)):
        a[i] *= 2
double(numpy.ones(3))
from numba.np.ufunc.parallel import _backend_init_process_lock as lock
assert type(lock).__name__ == "_nop", lock
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
