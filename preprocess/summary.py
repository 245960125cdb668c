"""What a user wants to know about containers that were just written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harl_fast.data.container.manifest import Manifest, find_container, read_manifest
from harl_fast.errors import DataError, one_line
from harl_fast.textfile import read_json
from preprocess.masks.registry import SUPERVISION
from preprocess.masks.sources import MaskList
from preprocess.shards import report_path
from preprocess.soundness import DAMAGED

Report = dict[str, list[dict[str, str]]]


def summarise(out: Path, split: str, masks: MaskList, classes: list[str], rate: float) -> Manifest:
    """Print a summary of one container or set and return its manifest.

    rate: images per second of the conversion; 0 if there is nothing to say of it.
    """
    beton = find_container(out, split)
    manifest, listing = read_manifest(beton), report_path(out / f"{split}.beton")
    report: Report = read_json(listing, error=DataError, most_bytes=1 << 30)
    mask, counts = manifest.mask, manifest.class_counts
    notes = [f"{one_line(masks.title)} ({SUPERVISION[mask['supervision']]})"]
    for key, what in (("fallbacks", "fall-backs"), ("stand_ins", "centre ellipses")):
        number = mask[key]
        notes += [f"{what} {number:,} ({number / manifest.count:.1%})"] if number else []
    kinds = "without labels"
    if counts:
        kinds = f"{len(counts)} classes of {min(counts):,} to {max(counts):,}"
    print(f"{split}: {manifest.count:,} images, {kinds}, {manifest.skipped:,} files skipped")
    print(
        f"  masks: {', '.join(notes)}; "
        f"coverage {mask['coverage_mean']:.1%}, empty {mask['empty_share']:.1%}, "
        f"full {mask['full_share']:.1%}"
    )
    for line in (*_on_store(manifest), *_on_files(beton, manifest, rate)):
        print(line)
    for line in (*_on_report(listing, report), *_lost_classes(masks, manifest, report, classes)):
        print(line)
    return manifest


def _on_store(manifest: Manifest) -> Iterator[str]:
    store = manifest.store
    if "passed_through" in store:
        reasons = [f"{why} {count:,}" for why, count in Counter(store["reencoded"]).most_common()]
        tail = f"; the rest encoded again: {', '.join(reasons)}" if reasons else ""
        yield f"  {store['passed_through']:,} files stored as they were{tail}"
    for remark, count in Counter(store["remarks"]).most_common():
        yield f"  {remark}: {count:,} files"


def _on_files(beton: Path, manifest: Manifest, rate: float) -> Iterator[str]:
    speed = f", {rate:,.0f} images/s" if rate else ""
    shards = f" in {len(manifest.shards):,} shards" if manifest.shards else ""
    yield f"  {manifest.beton_bytes / 1e6:,.1f} MB{shards}{speed}: {beton}"


def _on_report(listing: Path, report: Report) -> Iterator[str]:
    damaged = sum(item["reason"].startswith(DAMAGED) for item in report["skipped"])
    if damaged:
        yield (
            f"  {damaged:,} of the skipped files are damaged; --keep-warned keeps JPEGs and WebPs"
        )
    for what, key in (
        ("skipped files", "skipped"),
        ("damaged files that were kept", "warned"),
        ("masks by fall-back", "masks_replaced"),
    ):
        if items := report[key]:
            first = f"{items[0]['path']}: {items[0]['reason']}"
            yield f"  {what} and reasons: {listing} (first: {first})"


def _lost_classes(
    masks: MaskList, manifest: Manifest, report: Report, classes: list[str]
) -> Iterator[str]:
    """Yield a line on each class of which no image could be read."""
    split = masks.split
    counts = manifest.class_counts
    lost = [label for label in sorted(set(split.labels)) if label >= 0 and not counts[label]]
    reasons = {item["path"]: item["reason"] for item in report["skipped"]} if lost else {}
    for label in lost:
        names = [name for name, own in zip(split.names, split.labels, strict=True) if own == label]
        first = one_line(names[0])
        yield (
            f"  class {classes[label]} is lost: none of its {len(names):,} files could be read "
            f"(first: {first}: {reasons[first]})"
        )
