"""The benchmark's input: photo-like JPEGs as an image folder, masks for the peers, containers.

Everything is made once and kept under ``data/bench``; a finished part ends with a marker file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import preprocess
from harl_fast.data.container import checksum, fields, integrity, manifest
from harl_fast.data.container.fields import resize_mask
from harl_fast.data.order import spread
from harl_fast.data.views import jpeg
from harl_fast.errors import DataError
from harl_fast.files import Progress
from preprocess.images.arrays import Pixels
from preprocess.masks import find_mask

CLASSES, QUALITY, LONGEST_PX, MASK_PX = 4, 90, 500, 64
SHAPES = ((400, 500), (375, 500), (333, 500), (500, 375))
"""Height and width of the generated pictures: the usual proportions, about 500 x 400."""
PHOTOS = {
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/rocket.jpg",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
        "data/retina.jpg",
        "data/hubble_deep_field.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
TAR_SHARDS = 4
LAYOUT = (checksum, fields, jpeg, manifest, integrity)
STORES = ("jpg", "passthrough", "yuv420", "raw")


def sample_photos() -> list[Pixels]:
    """Return the colour photos that come with scikit-image and scikit-learn, (H, W, 3) RGB."""
    photos = []
    for package, names in PHOTOS.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            print(f"note: {package} is not installed; its sample photos are left out")
            continue
        folder = Path(found.origin).parent
        files = [folder / name for name in names if (folder / name).is_file()]
        photos += [np.asarray(Image.open(file).convert("RGB")) for file in files]
    if not photos:
        raise DataError(
            "no sample photos: `pip install scikit-image scikit-learn`, or give a folder of "
            "photos with --data FOLDER"
        )
    return photos


def variation(photo: Pixels, number: int) -> Pixels:
    """Return a picture of one of `SHAPES` cut from a photo, with its own gain and sensor noise."""
    rng = np.random.default_rng(number)
    height, width = SHAPES[number % len(SHAPES)]
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * rng.uniform(0.7, 1.0)
    box_h, box_w = int(height * scale), int(width * scale)
    top = rng.integers(0, photo.shape[0] - box_h + 1)
    left = rng.integers(0, photo.shape[1] - box_w + 1)
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    part = cv2.resize(
        photo[top : top + box_h, left : left + box_w], (width, height), interpolation=how
    )
    if rng.random() < 0.5:
        part = part[:, ::-1]
    noisy = part * rng.uniform(0.8, 1.15, 3) + rng.normal(0, 4, part.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _pictures(data: Path | None, count: int) -> Iterator[tuple[Pixels, Path | None]]:
    """Yield (pixels, file whose bytes can be taken as they are or None)."""
    if data is None:
        photos = sample_photos()
        for number in range(count):
            yield variation(photos[number % len(photos)], number), None
        return
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if len(files) < count:
        raise DataError(f"{data} holds {len(files)} JPEGs, --count asks for {count}")
    for place in spread(len(files), count).tolist():
        with Image.open(files[place]) as image:
            small = max(image.size) <= LONGEST_PX and image.mode == "RGB"
            if max(image.size) > LONGEST_PX:
                image.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
            pixels = np.asarray(image.convert("RGB"))
        yield pixels, files[place] if small else None


def set_name(data: Path | None, count: int) -> str:
    """Return the name under which an input set is kept, by the whole path of its photos."""
    if data is None:
        return f"photos-{count}"
    whole = data.resolve()
    return f"{whole.name}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}-{count}"


def image_set(base: Path, *, count: int, data: Path | None) -> Path:
    """Return a folder with ``count`` JPEGs in source/train/<class>/, and their masks.

    ``data``: a folder of photos; those above `LONGEST_PX` or not RGB are shrunk and written again,
    so that every contender reads the same pixels. The masks are the project's heuristic ones, 0 or
    255: in masks/<class>/ `MASK_PX` pixels square in the image's frame, in whole_masks/<class>/ of
    the image's size, as people have them.
    """
    root = base / set_name(data, count)
    if (root / "complete").is_file() and (root / "whole_masks").is_dir():
        return root
    shutil.rmtree(root, ignore_errors=True)
    for kind in range(CLASSES):
        for part in ("source/train", "source/val", "masks", "whole_masks"):
            (root / part / f"class{kind}").mkdir(parents=True)
    with Progress(count, label="making the input set") as progress:
        for number, (pixels, file) in enumerate(_pictures(data, count)):
            kind, stem = f"class{number % CLASSES}", f"{number:06d}"
            target = root / "source/train" / kind / f"{stem}.jpg"
            if file is None:
                Image.fromarray(pixels).save(target, quality=QUALITY)
            else:
                shutil.copyfile(file, target)
            mask = find_mask(pixels, "heuristic")[0]
            small = Image.fromarray(resize_mask(mask, size=MASK_PX).astype(np.uint8) * 255)
            small.save(root / "masks" / kind / f"{stem}.png")
            whole = Image.fromarray(mask.astype(np.uint8) * 255).resize(pixels.shape[1::-1])
            whole.save(root / "whole_masks" / kind / f"{stem}.png")
            if number < CLASSES:  # a container's source must have a val folder
                shutil.copyfile(target, root / "source/val" / kind / f"{stem}.jpg")
            progress.advance()
    (root / "complete").touch()
    return root


def jpegs(root: Path) -> list[Path]:
    """Return the input files in the order of the containers."""
    return sorted((root / "source/train").rglob("*.jpg"))


def our_container(root: Path, store: str, log: Path) -> Path | str:
    """Return the container of one store, or why there is none.

    It is written again when any source of the converting programs has changed, or one of the files
    that say how a container is laid out.
    """
    out = root / f"beton-{store}"
    marker, version = out / "complete", _converter_version()
    if marker.is_file() and marker.read_text(encoding="utf-8") == version:
        return out / "train.beton"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "preprocess.beton", "--data", str(root / "source")]
    command += ["--out", str(out), "--store", store]
    print(f"writing the {store} container", flush=True)
    with open(log, "a", encoding="utf-8") as stream:
        run = subprocess.run(command, stdout=stream, stderr=stream, check=False)
    if run.returncode:
        return f"`preprocess.beton --store {store}` failed with code {run.returncode}, see {log}"
    marker.write_text(version, encoding="utf-8")
    return out / "train.beton"


def _converter_version() -> str:
    files = [*Path(str(preprocess.__file__)).parent.rglob("*.py")]
    files += [Path(str(module.__file__)) for module in LAYOUT]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def stock_container(root: Path, log: Path) -> Path:
    """Return FFCV's own container of the same pictures: its DatasetWriter, JPEG quality 90."""
    path = root / "stock.beton"
    if not (root / "stock.complete").is_file():
        print("writing stock FFCV's container", flush=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.peer_ffcv",
            str(root / "source/train"),
            str(path),
        ]
        with open(log, "a", encoding="utf-8") as stream:
            subprocess.run(command, stdout=stream, stderr=stream, check=True)
        (root / "stock.complete").touch()
    return path


def packed(root: Path) -> Path:
    """Return a folder with the input files as tar shards in tar/ and a Parquet file in parquet/."""
    out = root / "packed"
    if (out / "complete").is_file():
        return out
    import pyarrow  # of the extra `parquet`
    import pyarrow.parquet

    shutil.rmtree(out, ignore_errors=True)
    for kind in ("tar", "parquet"):
        (out / kind).mkdir(parents=True)
    files = jpegs(root)
    for part in range(TAR_SHARDS):
        with tarfile.open(out / f"tar/train-{part:02d}.tar", "w") as archive:
            for file in files[part::TAR_SHARDS]:
                archive.add(file, f"{file.stem}.jpg")
                label = tarfile.TarInfo(f"{file.stem}.cls")
                text = file.parent.name.removeprefix("class").encode()
                label.size = len(text)
                archive.addfile(label, io.BytesIO(text))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [file.parent.name for file in files]
    table = pyarrow.table({"image": images, "label": labels})
    pyarrow.parquet.write_table(table, out / "parquet/train.parquet", row_group_size=100)
    (out / "complete").touch()
    return out
