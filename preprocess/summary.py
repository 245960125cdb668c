"""What a user wants to know about containers that were just written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harl_fast.data.container.manifest import Manifest
from harl_fast.errors import one_line
from preprocess.images.soundness import DAMAGED
from preprocess.masks.registry import SUPERVISION
from preprocess.masks.sources import MaskList
from preprocess.places import Place
from preprocess.shards import Report, read_report
from preprocess.sources import Split


def summarise(
    place: Place, split: str, masks: MaskList, classes: list[str], rate: float
) -> Manifest:
    """Print a summary of one container or set and return its manifest.

    rate: images per second of the conversion; 0 if there is nothing to say of it.
    """
    manifest, listing = place.manifest(split), f"{split}.report.json"
    report = read_report(place, listing)
    mask, counts = manifest.mask, manifest.class_counts
    notes = [f"{one_line(masks.title)} ({SUPERVISION[mask['supervision']]})"]
    for key, what in (
        ("fallbacks", "fall-backs"),
        ("stand_ins", "centre ellipses"),
        ("edited", "of your own"),
    ):
        number = mask.get(key, 0)
        notes += [f"{what} {number:,} ({number / manifest.count:.1%})"] if number else []
    kinds = "no labels"
    if counts:
        kinds = f"{len(counts)} classes of {min(counts):,} to {max(counts):,}"
    print(f"{split}: {manifest.count:,} images, {kinds}, {manifest.skipped:,} files skipped")
    print(
        f"  masks: {', '.join(notes)}; "
        f"coverage {mask['coverage_mean']:.1%}, empty {mask['empty_share']:.1%}, "
        f"full {mask['full_share']:.1%}"
    )
    for line in (
        *_on_masks(manifest, masks),
        *_on_store(manifest),
        *_on_files(place, manifest, rate),
    ):
        print(one_line(line))
    for line in (*_on_report(f"{place}/{listing}", report), *_lost(masks.split, report, classes)):
        print(one_line(line))
    return manifest


def _on_masks(manifest: Manifest, masks: MaskList) -> Iterator[str]:
    """Yield a line on mask files most of which tell nothing: often by another meaning of values."""
    share = manifest.mask["full_share"]
    if masks.has_files and share >= 0.5:
        yield (
            f"  note: {share:.1%} of the masks are full, as if there were none: in mask files 0 is "
            f"background, and every other value is foreground, 1 and mid-grey too"
        )


def _on_store(manifest: Manifest) -> Iterator[str]:
    store = manifest.store
    if "passed_through" in store:
        reasons = [f"{why} {count:,}" for why, count in Counter(store["reencoded"]).most_common()]
        tail = f"; the rest encoded again: {', '.join(reasons)}" if reasons else ""
        yield f"  {store['passed_through']:,} files stored as they were{tail}"
    for remark, count in Counter(store["remarks"]).most_common():
        yield f"  {remark}: {count:,} files"


def _on_files(place: Place, manifest: Manifest, rate: float) -> Iterator[str]:
    speed = f", {rate:,.0f} images/s" if rate else ""
    name = f"{manifest.split}/" if manifest.shards else f"{manifest.split}.beton"
    shards = f" in {len(manifest.shards):,} shards" if manifest.shards else ""
    yield f"  {manifest.beton_bytes / 1e6:,.1f} MB{shards}{speed}: {place}/{name}"


def _on_report(listing: str, report: Report) -> Iterator[str]:
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


def _lost(split: Split, report: Report, classes: list[str]) -> Iterator[str]:
    """Yield a line on each class that lost all its files, and each folder of one that did not."""

    def class_of(row: int) -> str:
        return f"class {classes[split.labels[row]]}"

    def folder_of(row: int) -> str:
        folder = one_line(split.names[row].rpartition("/")[0])
        return f"folder {folder}" if folder else "the first level of folders"

    reasons = {item["path"]: item["reason"] for item in report["skipped"]}
    skipped = [one_line(name) in reasons for name in split.names] if reasons else []
    told = set[int]()
    for group in (class_of, folder_of) if classes else (folder_of,):
        sound = {group(row) for row, gone in enumerate(skipped) if not gone}
        lost: dict[str, list[int]] = {}
        for row, gone in enumerate(skipped):
            if gone and row not in told and (name := group(row)) not in sound:
                lost.setdefault(name, []).append(row)
        for name, rows in sorted(lost.items()):
            told.update(rows)
            first = one_line(split.names[rows[0]])
            yield (
                f"  {name} is lost: none of its {len(rows):,} files could be read "
                f"(first: {first}: {reasons[first]})"
            )
