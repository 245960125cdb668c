"""From a source to containers: conversion, tally, manifests and reports."""

from __future__ import annotations

import contextlib
import datetime
import functools
import platform
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harl_fast import __version__
from harl_fast.data.imagefield import MODE_NAMES
from harl_fast.data.manifest import (
    FORMAT_VERSION,
    Manifest,
    check_container,
    one_line,
    write_manifest,
    write_names,
    write_sums,
)
from harl_fast.data.tables import tables_sha256
from harl_fast.errors import DataError
from harl_fast.files import Progress, replacing, sha256_file, write_json
from preprocess.convert import Sample, Settings, Task, convert
from preprocess.masks import METHODS
from preprocess.masks.tree import MaskTree, open_tree
from preprocess.pool import ordered_map
from preprocess.sources import Rejected, Source, Split
from preprocess.writer import container_writer

CHUNK = 16
"""Images a worker takes at a time: about 0.1 s of work, 2 MB of result."""
SLOW_BYTES = 2 * 10**9
"""From here on a checksum takes seconds."""
MASK_SAMPLE = 200
"""A mask tree without a file for any of this many images is taken for the wrong tree."""
TOOLS = ("ffcv", "numpy", "opencv-python", "pillow")


@dataclass
class Tally:
    """What became of a split's images, counted while they pass to the writer."""

    rejected: list[Rejected]
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    replaced: list[Rejected] = field(default_factory=list)
    """Mask files that could not serve."""
    stand_ins: int = 0
    coverage: float = 0.0
    """Sum of the masks' foreground shares."""
    empty: int = 0
    full: int = 0
    seconds: float = 0.0
    sums: array[int] = field(default_factory=lambda: array("I"))
    """CRC-32 of each sample's stored image, then of its mask."""
    pixels: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    """Samples stored under each mode, and their bytes below."""
    image_bytes: Counter[str] = field(default_factory=Counter)
    reencoded: Counter[str] = field(default_factory=Counter)
    """Why files could not pass through, and how many."""

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.names.append(sample.name)
        self.labels.append(sample.label)
        self.sums.extend((zlib.crc32(sample.image), zlib.crc32(sample.mask)))
        self.pixels += sample.height * sample.width
        self.modes[MODE_NAMES[sample.mode]] += 1
        self.image_bytes[MODE_NAMES[sample.mode]] += len(sample.image)
        if sample.reencoded:
            self.reencoded[sample.reencoded] += 1
        if sample.mask_problem:
            self.replaced.append(Rejected(sample.name, sample.mask_problem))
        share = float(np.unpackbits(np.frombuffer(sample.mask, np.uint8)).mean())
        self.stand_ins += sample.stand_in
        self.coverage += share
        self.empty += share == 0.0
        self.full += share == 1.0


def build(
    source: Source, out: Path, settings: Settings, *, masks: Path | None, workers: int
) -> list[Manifest]:
    """Write ``out``/<split>.beton with manifest, names and report for each split of a source.

    No file takes its final name before all containers are whole. Returns the manifests.
    """
    for left in sorted(out.glob(".*.beton.*.tmp")):
        print(f"note: {left} is left of a run that was killed; delete it if none is going on")
    written = []
    with contextlib.ExitStack() as stack:
        for name, split in source.splits.items():
            tree = open_tree(masks, split.names[0], source.classes) if masks else None
            beton = out / f"{name}.beton"
            temporary = stack.enter_context(replacing(beton))
            tally = _convert_split(temporary, name, split, tree, settings, workers=workers)
            size = temporary.stat().st_size
            if size > SLOW_BYTES:
                print(f"computing the checksum of {name}: {size / 1e9:,.1f} GB", flush=True)
            facts = (size, sha256_file(temporary))
            written.append((beton, tree, tally, facts))
    manifests = []
    for beton, tree, tally, facts in written:
        mask = _mask_facts(tally, masks if tree else None, settings)
        write_json(out / f"{beton.stem}.report.json", _report(tally))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            split=beton.stem,
            count=len(tally.names),
            classes=source.classes,
            class_counts=np.bincount(tally.labels, minlength=len(source.classes)).tolist(),
            source=source.name,
            mask=mask,
            store=_store_facts(tally, settings),
            skipped=len(tally.rejected),
            beton_bytes=facts[0],
            beton_sha256=facts[1],
            names_sha256=write_names(beton, tally.names),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            tool_versions=_versions(),
            tables_sha256=tables_sha256(beton),
            sums_sha256=write_sums(beton, tally.sums),
        )
        write_manifest(beton, manifest)
        check_container(beton, manifest)
        _summarise(beton, manifest, tally)
        manifests.append(manifest)
    return manifests


def _convert_split(
    path: Path,
    name: str,
    split: Split,
    tree: MaskTree | None,
    settings: Settings,
    *,
    workers: int,
) -> Tally:
    """Write one container to ``path`` and return what became of the images."""
    count = len(split.names)
    if tree is not None and not any(tree.path(n).is_file() for n in split.names[:MASK_SAMPLE]):
        raise DataError(
            f"none of the first {min(count, MASK_SAMPLE)} images of {name} has a mask file: for "
            f"{split.names[0]} it should be {tree.path(split.names[0])}. Check the tree's names, "
            f"or leave --masks out"
        )
    tally = Tally(list(split.rejected))
    results = ordered_map(
        functools.partial(convert, settings=settings),
        _tasks(split, tree),
        workers=min(workers, -(-count // CHUNK)),
        describe=lambda chunk: f"{chunk[0].name} to {chunk[-1].name}",
    )
    writer = container_writer(
        path,
        max_resolution=settings.max_resolution,
        mask_size=settings.mask_size,
        yuv420=settings.store.has_yuv420,
    )
    start = time.monotonic()
    with contextlib.closing(results), Progress(count, label=f"writing {name}") as progress:
        samples = _pass_on(results, tally, progress)
        if writer.write(samples, capacity=count) == 0:
            first = tally.rejected[-1]
            raise DataError(
                f"none of the {count:,} images of {name} could be read; the last was "
                f"{first.name}: {first.reason}"
            )
    tally.seconds = time.monotonic() - start
    return tally


def _tasks(split: Split, tree: MaskTree | None) -> Iterator[list[Task]]:
    for start in range(0, len(split.names), CHUNK):
        yield [
            Task(
                name=split.names[index],
                label=split.labels[index],
                image=split.image(index),
                mask=tree.path(split.names[index]) if tree else None,
                position=index,
            )
            for index in range(start, min(start + CHUNK, len(split.names)))
        ]


def _pass_on(
    results: Iterator[list[Sample | Rejected]], tally: Tally, progress: Progress
) -> Iterator[Sample]:
    for chunk in results:
        for result in chunk:
            if isinstance(result, Rejected):
                tally.rejected.append(result)
            else:
                tally.add(result)
                yield result
        progress.advance(len(chunk))


def _store_facts(tally: Tally, settings: Settings) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": settings.store.name,
        "max_resolution": settings.max_resolution,
        "quality": settings.quality,
        "pixels": tally.pixels,
        "modes": {
            name: {"count": count, "bytes": tally.image_bytes[name]}
            for name, count in sorted(tally.modes.items())
        },
        # Files that pass through have them or not, as they came.
        "restart_markers": settings.store.kind != "passthrough" and tally.modes["jpg"] > 0,
    }
    if settings.store.kind == "passthrough":
        facts["passed_through"] = len(tally.names) - tally.reencoded.total()
        facts["reencoded"] = dict(tally.reencoded.most_common())
    return facts


def _mask_facts(tally: Tally, masks: Path | None, settings: Settings) -> dict[str, Any]:
    method = METHODS[settings.mask_method]
    own = {"parameters": dict(method.parameters), "supervision": method.supervision}
    made = {"method": settings.mask_method, **own}
    # Nobody can tell from mask files how they were made, so they count as supervision.
    given = {
        "method": "tree",
        "parameters": {"tree": masks.name if masks else "", "fallback": made},
        "supervision": "external",
    }
    count = len(tally.names)
    return {
        **(given if masks else made),
        "size": settings.mask_size,
        "coverage_mean": tally.coverage / count,
        "empty_share": tally.empty / count,
        "full_share": tally.full / count,
        "fallbacks": len(tally.replaced),
        "stand_ins": tally.stand_ins,
    }


def _report(tally: Tally) -> dict[str, Any]:
    def listed(items: list[Rejected]) -> list[dict[str, str]]:
        return [{"path": one_line(item.name), "reason": one_line(item.reason)} for item in items]

    return {"skipped": listed(tally.rejected), "masks_replaced": listed(tally.replaced)}


def _versions() -> dict[str, str]:
    tools = {name: version(name) for name in TOOLS}
    return {"harl_fast": __version__, "python": platform.python_version(), **tools}


def _summarise(beton: Path, manifest: Manifest, tally: Tally) -> None:
    """Print what a user wants to know about one container."""
    mask, counts = manifest.mask, manifest.class_counts
    notes = [mask["method"]]
    if tally.replaced:
        stand_by = mask["parameters"]["fallback"]["method"]
        notes.append(f"{len(tally.replaced):,} files of it replaced by {stand_by}")
    if tally.stand_ins:
        notes.append(f"{tally.stand_ins:,} centre ellipses stand in")
    print(
        f"{manifest.split}: {manifest.count:,} images, {len(counts)} classes of {min(counts):,} to "
        f"{max(counts):,}, {manifest.skipped:,} files skipped"
    )
    print(
        f"  masks: {', '.join(notes)}; "
        f"coverage {mask['coverage_mean']:.1%}, empty {mask['empty_share']:.1%}, "
        f"full {mask['full_share']:.1%}"
    )
    if "passed_through" in manifest.store:
        reasons = [f"{reason} {count:,}" for reason, count in tally.reencoded.most_common()]
        tail = f"; the rest encoded again: {', '.join(reasons)}" if reasons else ""
        print(f"  {manifest.store['passed_through']:,} files stored as they were{tail}")
    rate = manifest.count / max(tally.seconds, 1e-9)
    print(f"  {manifest.beton_bytes / 1e6:,.1f} MB, {rate:,.0f} images/s: {beton}")
    if tally.rejected:
        first = one_line(f"{tally.rejected[0].name}: {tally.rejected[0].reason}")
        listing = beton.with_name(f"{beton.stem}.report.json")
        print(f"  skipped files and reasons: {listing} (first: {first})")
