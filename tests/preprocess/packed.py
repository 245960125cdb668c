"""An image folder as archives, tar shards and tables, written by the libraries that people use."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest


def files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files below a folder by their relative names, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in paths]


def to_zip(folder: Path, path: Path, *, top: str = "", packed: bool = True) -> Path:
    """Write a folder as a zip archive, below the folder ``top`` in it."""
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, file in files(folder):
            archive.write(file, top + name)
    return path


def to_tar(folder: Path, path: Path, *, mode: Any = "w", top: str = "./") -> Path:
    """Write a folder as a tar archive, compressed by modes such as ``w:gz``."""
    with tarfile.open(path, mode) as archive:
        archive.add(folder, top)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member of some bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar archive of some members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add(archive, name, data)
    return path


def labelled(folder: Path, split: str) -> list[tuple[str, Path]]:
    """Return class and file of each image of a split."""
    return [(file.parent.name, file) for _, file in files(folder / split)]


def to_shards(folder: Path, out: Path, *, most: int = 3) -> Path:
    """Write a class folder as WebDataset's shards of at most ``most`` samples per split."""
    wds = pytest.importorskip("webdataset", reason="pip install webdataset")
    out.mkdir()
    classes = sorted({kind for kind, _ in labelled(folder, "train")})
    for split in ("train", "val"):
        with wds.ShardWriter(f"{out}/{split}-%04d.tar", maxcount=most, verbose=0) as writer:
            for kind, file in labelled(folder, split):
                key, suffix = f"{kind}/{file.stem}", file.suffix[1:]
                data = file.read_bytes()
                writer.write({"__key__": key, suffix: data, "cls": classes.index(kind)})
    return out


def hugging_face(folder: Path, split: str) -> Any:
    """Return a split of a class folder as a `datasets.Dataset`."""
    library = pytest.importorskip("datasets", reason="pip install datasets")
    library.disable_progress_bars()
    classes = sorted({kind for kind, _ in labelled(folder, "train")})
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=classes)}
    images = [
        {"bytes": file.read_bytes(), "path": file.name} for _, file in labelled(folder, split)
    ]
    labels = [classes.index(kind) for kind, _ in labelled(folder, split)]
    rows = {"image": images, "label": labels}
    return library.Dataset.from_dict(rows, features=library.Features(kinds))


def to_parquet(folder: Path, out: Path, *, shards: int = 2, rows: int = 2) -> Path:
    """Write a class folder as Parquet files of some row groups, named as on Hugging Face's hub."""
    for split, theirs in (("train", "train"), ("val", "validation")):
        whole = hugging_face(folder, split)
        for number in range(shards):
            name = f"{theirs}-{number:05d}-of-{shards:05d}.parquet"
            (out / "data").mkdir(parents=True, exist_ok=True)
            part = whole.shard(shards, number, contiguous=True)
            part.to_parquet(out / "data" / name, batch_size=rows)
    return out


def to_saved(folder: Path, out: Path) -> Path:
    """Write a class folder as a data set on disk (`DatasetDict.save_to_disk`)."""
    library = pytest.importorskip("datasets", reason="pip install datasets")
    parts = {"train": hugging_face(folder, "train"), "test": hugging_face(folder, "val")}
    library.DatasetDict(parts).save_to_disk(out, num_shards={"train": 2, "test": 1})
    return out


KINDS = {
    "shards": lambda folder, out: to_shards(folder, out / "shards"),
    "parquet": lambda folder, out: to_parquet(folder, out / "parquet"),
    "saved": lambda folder, out: to_saved(folder, out / "saved"),
    "zip": lambda folder, out: to_zip(folder, out / "set.zip", top="photos/"),
    "stored": lambda folder, out: to_zip(folder, out / "set.zip", packed=False),
    "tar": lambda folder, out: to_tar(folder, out / "set.tar"),
    "tgz": lambda folder, out: to_tar(folder, out / "set.tgz", mode="w:gz"),
    "tar.xz": lambda folder, out: to_tar(folder, out / "set.tar.xz", mode="w:xz"),
}
"""All that a class folder can be packed as."""
