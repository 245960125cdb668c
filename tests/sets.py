"""Sets of containers for tests: a container's samples, cut into shards by the project's writer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from harl_fast.data.container.checksum import stored_sum
from harl_fast.data.container.fields import MODE_YUV420
from harl_fast.data.container.integrity import tables_sha256
from harl_fast.data.container.manifest import (
    Manifest,
    manifest_path,
    merge_manifests,
    read_manifest,
    write_manifest,
    write_names,
    write_sums,
)
from harl_fast.data.reader import OpenContainer
from harl_fast.files import sha256_file
from preprocess.convert import Sample
from preprocess.writer import container_writer


def split_beton(beton: Path, folder: Path, *, shards: int) -> Path:
    """Write a container's samples as a set of so many shards and return the set's path."""
    container, known = OpenContainer(beton), read_manifest(beton)
    path = folder / known.split
    path.mkdir(parents=True)
    written = []
    for number, ids in enumerate(np.array_split(np.arange(known.count), shards)):
        name = f"{number:05d}-of-{shards:05d}.beton"
        written.append((name, _write_shard(path / name, container, ids.tolist(), known)))
    source = {"created": known.created, "source": known.source, "first": 0, "count": known.count}
    write_manifest(path, merge_manifests(written, [source]))
    return path


def _write_shard(path: Path, container: OpenContainer, ids: list[int], known: Manifest) -> Manifest:
    samples, sums = [], []
    for index in ids:
        row = container.stored.rows[index]
        image, mask = container.image_bytes(index), container.mask_bytes(index)
        assert image is not None and mask is not None
        sums += [stored_sum(image.tobytes()), stored_sum(mask.tobytes())]
        samples.append(
            Sample(
                name=container.name_of(index),
                label=int(container.labels[index]),
                mode=int(row["mode"]),
                image=image,
                image_bytes=len(image),
                height=int(row["height"]),
                width=int(row["width"]),
                mask=mask.tobytes(),
            )
        )
    size = container.stored.mask_size
    has_yuv420 = any(sample.mode == MODE_YUV420 for sample in samples)
    writer = container_writer(path, max_resolution=1024, mask_size=size, yuv420=has_yuv420)
    writer.write(samples, capacity=len(samples))
    counts = np.bincount([s.label for s in samples], minlength=len(known.classes)).tolist()
    manifest = dataclasses.replace(
        known,
        count=len(ids),
        class_counts=counts,
        mask={**known.mask, "size": size},
        beton_bytes=path.stat().st_size,
        beton_sha256=sha256_file(path),
        names_sha256=write_names(path, [sample.name for sample in samples]),
        tables_sha256=tables_sha256(path),
        sums_sha256=write_sums(path, sums),
    )
    return write_manifest(path, manifest)


def rewrite_set(path: Path) -> None:
    """Write a set's manifest again after its shards' manifests were."""
    known = read_manifest(path)
    shards = [(shard.file, read_manifest(path / shard.file)) for shard in known.shards]
    manifest_path(path).unlink()
    write_manifest(path, merge_manifests(shards, known.history))
