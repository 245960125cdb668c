"""From a source to containers: conversion, tally, manifests and reports."""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harl_fast import __version__
from harl_fast.data.container.checksum import stored_sum
from harl_fast.data.container.fields import MODE_NAMES
from harl_fast.data.container.index import check_container
from harl_fast.data.container.integrity import tables_sha256
from harl_fast.data.container.manifest import (
    FORMAT_VERSION,
    Manifest,
    manifest_path,
    names_path,
    sums_path,
    write_manifest,
    write_names,
    write_sums,
)
from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress, check_output, replacing_together, sha256_file, write_json
from harl_fast.host import utc_time
from preprocess.convert import Sample, Settings, Task, convert
from preprocess.masks.controls import CANVAS_PX
from preprocess.masks.registry import CHUNK, SUPERVISION
from preprocess.masks.sources import MaskList, open_masks
from preprocess.pool import ordered_map
from preprocess.reading import DEFAULT_READING
from preprocess.soundness import DAMAGED
from preprocess.sources import Rejected, Source, Split
from preprocess.writer import container_writer

SLOW_BYTES = 2 * 10**9
"""From here on a checksum takes seconds."""
TOOLS = ("ffcv", "numpy", "opencv-python", "pillow")


@dataclass
class Tally:
    """What became of a split's images, counted while they pass to the writer."""

    rejected: list[Rejected]
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    replaced: list[Rejected] = field(default_factory=list)
    """Masks that a fall-back had to make."""
    stand_ins: int = 0
    coverage: float = 0.0
    """Sum of the masks' foreground shares."""
    empty: int = 0
    full: int = 0
    seconds: float = 0.0
    sums: array[int] = field(default_factory=lambda: array("Q"))
    """`stored_sum` of each sample's image, then of its mask."""
    pixels: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    """Samples stored under each mode, and their bytes below."""
    image_bytes: Counter[str] = field(default_factory=Counter)
    reencoded: Counter[str] = field(default_factory=Counter)
    """Why files could not pass through, and how many."""
    warned: list[Rejected] = field(default_factory=list)
    """Damaged files that were kept."""
    remarks: Counter[str] = field(default_factory=Counter)
    """What was done to samples' pixels, see `Decoded`, and to how many."""

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        self.names.append(sample.name)
        self.labels.append(sample.label)
        self.sums.extend((stored_sum(sample.image), stored_sum(sample.mask)))
        self.pixels += sample.height * sample.width
        self.modes[MODE_NAMES[sample.mode]] += 1
        self.image_bytes[MODE_NAMES[sample.mode]] += len(sample.image)
        if sample.reencoded:
            self.reencoded[sample.reencoded] += 1
        if sample.warning:
            self.warned.append(Rejected(sample.name, sample.warning))
        self.remarks.update(sample.remarks)
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
    """Write ``out``/<split>.beton with manifest, names, sums and report for each split of a source.

    masks: a tree of mask files or a cache, which come before the settings' mask method. All files
    take their final names together, see `replacing_together`: a crash leaves the old set, the new
    one, or containers without manifests, which nothing opens. Returns the manifests.
    """
    for left in sorted(out.glob(".*.tmp")):
        what = "is left of a run that was killed; delete it if none is going on"
        print(one_line(f"note: {left} {what}"))
    lists = {
        name: open_masks(split, source.classes, method=settings.mask_method, given=masks)
        for name, split in source.splits.items()
    }
    for name, mask_list in lists.items():
        _check_cache(mask_list, settings)
        beton = out / f"{name}.beton"
        beside = (manifest_path, names_path, sums_path, _report_path)
        for path in (beton, *(place(beton) for place in beside)):
            check_output(path, option="--out")
    _check_leftover(out, source)
    written = []
    with replacing_together(out, last=[f"{name}.json" for name in lists]) as fresh:
        for name, mask_list in lists.items():
            beton = fresh / f"{name}.beton"
            tally = _convert_split(beton, mask_list, settings, workers=workers)
            manifest = _describe(beton, source, tally, mask_list, settings)
            written.append((manifest, tally, mask_list))
    for manifest, tally, mask_list in written:
        _summarise(out / f"{manifest.split}.beton", manifest, tally, mask_list)
        for line in _lost(mask_list.split, tally, source.classes):
            print(one_line(line))
    return [manifest for manifest, _, _ in written]


def _check_leftover(out: Path, source: Source) -> None:
    """Raise `DataError` if an older val would stay beside the new train."""
    val = out / "val.beton"
    if "val" not in source.splits and (val.exists() or manifest_path(val).exists()):
        raise DataError(
            f"{val} is of an earlier conversion, and this source has no held-out part: delete it, "
            f"give --val a share, or choose another --out"
        )


def _report_path(beton: Path) -> Path:
    return beton.with_name(f"{beton.stem}.report.json")


def _describe(
    beton: Path, source: Source, tally: Tally, masks: MaskList, settings: Settings
) -> Manifest:
    """Write what lies beside a container, the manifest last, and check that it opens."""
    size = beton.stat().st_size
    if size > SLOW_BYTES:
        print(f"computing the checksum of {beton.stem}: {size / 1e9:,.1f} GB", flush=True)
    write_json(_report_path(beton), _report(tally))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        split=beton.stem,
        count=len(tally.names),
        classes=source.classes,
        class_counts=_class_counts(tally.labels, source.classes),
        source=source.name,
        mask=_mask_facts(tally, masks, settings),
        store=_store_facts(tally, settings),
        skipped=len(tally.rejected),
        beton_bytes=size,
        beton_sha256=sha256_file(beton),
        names_sha256=write_names(beton, tally.names),
        created=utc_time(),
        tool_versions={
            "harl_fast": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in TOOLS},
        },
        tables_sha256=tables_sha256(beton),
        sums_sha256=write_sums(beton, tally.sums),
    )
    write_manifest(beton, manifest)
    check_container(beton, manifest)
    return manifest


def _class_counts(labels: list[int], classes: list[str]) -> list[int]:
    return np.bincount(labels, minlength=len(classes)).tolist() if classes else []


def _check_cache(masks: MaskList, settings: Settings) -> None:
    if masks.cache is None:
        return
    if settings.mask_size > CANVAS_PX:
        raise DataError(
            f"--mask-size {settings.mask_size}: a cache holds masks of {CANVAS_PX} px; give a size "
            f"of at most that, or leave the cache out"
        )
    made_at = masks.cache.info["max_resolution"]
    if made_at != settings.max_resolution:
        print(
            f"note: the cached masks were made at --max-resolution {made_at}, not "
            f"{settings.max_resolution}: they serve, but differ a little from fresh ones"
        )
    made_with = masks.cache.info.get("reading", DEFAULT_READING.facts())
    if made_with != settings.reading.facts():
        print(
            f"note: the cached masks were made of files read as {made_with}, not as "
            f"{settings.reading.facts()}: they serve, but may differ from fresh ones"
        )


def _convert_split(path: Path, masks: MaskList, settings: Settings, *, workers: int) -> Tally:
    """Write one container to ``path`` and return what became of the images."""
    split, name = masks.split, path.stem
    count = len(split.names)
    tally = Tally(list(split.rejected))
    results = ordered_map(
        functools.partial(convert, settings=settings, methods=masks.methods),
        _tasks(masks),
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


def _tasks(masks: MaskList) -> Iterator[list[Task]]:
    split = masks.split
    for start in range(0, len(split.names), CHUNK):
        yield [
            Task(
                name=split.names[index],
                label=split.labels[index],
                image=split.image(index),
                mask=masks.request(index),
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
        **settings.reading.facts(),
        "remarks": dict(tally.remarks.most_common()),
        "pixels": tally.pixels,
        "modes": {
            name: {"count": count, "bytes": tally.image_bytes[name]}
            for name, count in sorted(tally.modes.items())
        },
        # Files that pass through have them or not, as they came.
        "restart_markers": settings.store.kind != "passthrough" and tally.modes["jpg"] > 0,
    }
    if settings.reading.keep_warned:
        facts["warned"] = len(tally.warned)
    if settings.store.kind == "passthrough":
        facts["passed_through"] = len(tally.names) - tally.reencoded.total()
        facts["reencoded"] = dict(tally.reencoded.most_common())
    return facts


def _mask_facts(tally: Tally, masks: MaskList, settings: Settings) -> dict[str, Any]:
    count = len(tally.names)
    return {
        **masks.final_facts(fallbacks=len(tally.replaced)),
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

    return {
        "skipped": listed(tally.rejected),
        "masks_replaced": listed(tally.replaced),
        "warned": listed(tally.warned),
    }


def _lost(split: Split, tally: Tally, classes: list[str]) -> Iterator[str]:
    """Yield a line on each class, or folder of images without labels, that lost all its files."""

    def groups(names: list[str], labels: list[int]) -> Iterator[str]:
        if classes:
            return (f"class {classes[label]}" for label in labels)
        return (f"folder {name.rpartition('/')[0] or '.'}" for name in names)

    if len(tally.names) == len(split.names):
        return
    lost = set(groups(split.names, split.labels)) - set(groups(tally.names, tally.labels))
    found: dict[str, list[str]] = {}
    for name, group in zip(split.names, groups(split.names, split.labels), strict=True):
        if group in lost:
            found.setdefault(group, []).append(name)
    reasons = {item.name: item.reason for item in tally.rejected} if lost else {}
    for group, names in sorted(found.items()):
        yield (
            f"  {one_line(group)} is lost: none of its {len(names):,} files could be read "
            f"(first: {one_line(f'{names[0]}: {reasons[names[0]]}')})"
        )


def _summarise(beton: Path, manifest: Manifest, tally: Tally, masks: MaskList) -> None:
    """Print what a user wants to know about one container."""
    mask, counts = manifest.mask, manifest.class_counts
    notes = [f"{one_line(masks.title)} ({SUPERVISION[mask['supervision']]})"]
    for number, what in ((len(tally.replaced), "fall-backs"), (tally.stand_ins, "centre ellipses")):
        notes += [f"{what} {number:,} ({number / manifest.count:.1%})"] if number else []
    labels = "no labels"
    if counts:
        labels = f"{len(counts)} classes of {min(counts):,} to {max(counts):,}"
    print(
        f"{manifest.split}: {manifest.count:,} images, {labels}, {manifest.skipped:,} files skipped"
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
    for remark, count in tally.remarks.most_common():
        print(f"  {remark}: {count:,} files")
    rate = manifest.count / max(tally.seconds, 1e-9)
    size = f"{manifest.beton_bytes / 1e6:,.1f} MB"
    print(one_line(f"  {size}, {rate:,.0f} images/s: {beton}"))
    if damaged := sum(item.reason.startswith(DAMAGED) for item in tally.rejected):
        print(
            f"  {damaged:,} of the skipped files are damaged; --keep-warned keeps JPEGs and WebPs"
        )
    listing = _report_path(beton)
    for what, items in (
        ("skipped files", tally.rejected),
        ("damaged files that were kept", tally.warned),
        ("masks by fall-back", tally.replaced),
    ):
        if items:
            first = f"{items[0].name}: {items[0].reason}"
            print(one_line(f"  {what} and reasons: {listing} (first: {first})"))
