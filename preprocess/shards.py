"""One shard: what becomes of its images, and the files that it is made of."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from harl_fast.data.container.digest import file_digest
from harl_fast.data.container.fields import MODE_NAMES
from harl_fast.data.container.index import check_container
from harl_fast.data.container.integrity import tables_sha256
from harl_fast.data.container.manifest import (
    FORMAT_VERSION,
    Manifest,
    manifest_path,
    names_path,
    read_manifest,
    sums_path,
    write_manifest,
    write_names,
    write_sums,
)
from harl_fast.errors import DataError, one_line
from harl_fast.files import sha256_file, sync, write_json
from harl_fast.host import utc_time
from harl_fast.kinds import Text, of_kind
from harl_fast.pool import Team
from preprocess.convert import ConversionSettings, Sample, Task
from preprocess.masks.registry import CHUNK, UNKNOWN, most_supervised
from preprocess.masks.sources import MaskList
from preprocess.places import LocalPlace, Place
from preprocess.prints import prints_path, write_prints
from preprocess.sources import Rejected
from preprocess.work import tool_versions
from preprocess.writer import container_writer, write_parts

STEM = "shard"
"""Name of a shard's files until it has its place."""


def report_path(beton: Path) -> Path:
    """Return the path of the report on what a container lacks, and why."""
    return beton.with_name(f"{beton.stem}.report.json")


BESIDE = (report_path, names_path, sums_path, prints_path, manifest_path)
"""Files of a container besides itself, the one that vouches for the others last."""


@dataclass(frozen=True)
class Job:
    """One shard to convert: all that another process must know besides the tasks."""

    folder: str
    """Where its files will lie together, within the output."""
    shown: str
    """What messages call its files, without their suffixes."""
    split: str
    rows: range
    """Of the split's list."""
    first: int
    """Sample id of the list's first image, if none is left out; not 0 in an addition to a set."""
    source: str
    provider: str
    """See `Manifest`."""
    classes: list[str]
    settings: ConversionSettings
    mask_facts: tuple[dict[str, Any], dict[str, Any]]
    """For the manifest: without and with masks by a fall-back."""
    rejected: list[Rejected]
    """Files of the source that are no images; the first shard lists them."""

    def tasks(self, masks: MaskList) -> Iterator[list[Task]]:
        """Yield its images in chunks, as networks take them."""
        split, stop = masks.split, self.rows.stop
        for start in range(self.rows.start, stop, CHUNK):
            yield [
                Task(
                    name=split.names[index],
                    label=split.labels[index],
                    image=split.image(index),
                    mask=masks.request(index),
                    position=self.first + index,
                )
                for index in range(start, min(start + CHUNK, stop))
            ]

    @property
    def chunks(self) -> int:
        """How many those are."""
        return -(-len(self.rows) // CHUNK)


@dataclass
class Tally:
    """What became of a split's images, counted while they pass to the writer."""

    rejected: list[Rejected]
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    replaced: list[Rejected] = field(default_factory=list)
    """Masks that a fall-back had to make."""
    stand_ins: int = 0
    edited: int = 0
    """Masks from users' own files in a tree that `make masks` made."""
    coverage: float = 0.0
    """Sum of the masks' foreground shares."""
    empty: int = 0
    full: int = 0
    sums: array[int] = field(default_factory=lambda: array("Q"))
    """Of each sample's image, then of its mask."""
    prints: array[int] = field(default_factory=lambda: array("Q"))
    """Fingerprint of each sample's file."""
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

    def add(self, chunk: Iterable[Sample | Rejected]) -> list[Sample]:
        """Count what became of some images, and return the samples among it."""
        self.rejected += [result for result in chunk if isinstance(result, Rejected)]
        samples = [result for result in chunk if isinstance(result, Sample)]
        for sample in samples:
            self._count(sample)
        return samples

    def _count(self, sample: Sample) -> None:
        self.names.append(sample.name)
        self.labels.append(sample.label)
        self.sums.extend(sample.sums)
        self.prints.append(sample.source_print)
        self.pixels += sample.height * sample.width
        self.modes[MODE_NAMES[sample.mode]] += 1
        self.image_bytes[MODE_NAMES[sample.mode]] += sample.image_bytes
        if sample.reencoded:
            self.reencoded[sample.reencoded] += 1
        if sample.warning:
            self.warned.append(Rejected(sample.name, sample.warning))
        self.remarks.update(sample.remarks)
        if sample.mask_problem:
            self.replaced.append(Rejected(sample.name, sample.mask_problem))
        share = int.from_bytes(sample.mask, "big").bit_count() / (8 * len(sample.mask))
        self.stand_ins += sample.stand_in
        self.edited += sample.edited
        self.coverage += share
        self.empty += share == 0.0
        self.full += share == 1.0


def write_shard(
    place: Place,
    job: Job,
    results: Iterable[list[Sample | Rejected]],
    advance: Callable[[int], object],
    team: Team[list[Task], list[Sample | Rejected]] | None = None,
) -> None:
    """Write a shard's files as the folder ``job.folder`` of ``place``, whole or not at all.

    results: of `convert`, in order; or of `convert_and_keep` by a team, which then writes the
    samples' bytes by `write_parts`. advance is told how many images are done. A shard of which no
    image could be read has its report only.
    """
    with place.staging(job.folder, shown=job.shown) as fresh:
        beton, tally = fresh / f"{STEM}.beton", Tally(list(job.rejected))
        writer = container_writer(
            beton,
            max_resolution=job.settings.max_resolution,
            mask_size=job.settings.mask_size,
            yuv420=job.settings.store.has_yuv420,
        )
        writer.begin(len(job.rows))
        for chunk in results:
            samples = tally.add(chunk)
            places = writer.place(samples)
            if team is None:
                write_parts([sample.parts for sample in samples], places)
            else:
                team.follow_up(places)
            advance(len(chunk))
        if team is not None:
            team.settle()
        write_json(report_path(beton), _report(tally))
        if writer.end():
            with ThreadPoolExecutor(1) as beside:  # the disk is as slow as the hash
                flushed = beside.submit(sync, beton)
                _describe(beton, job, tally, threads=team.workers if team else 1)
            flushed.result()
        else:
            beton.unlink()


def _describe(beton: Path, job: Job, tally: Tally, *, threads: int) -> None:
    """Write what lies beside a container, the manifest last, and check that it opens.

    threads: that may read the container.
    """
    classes = len(job.classes)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        split=job.split,
        count=len(tally.names),
        classes=job.classes,
        class_counts=np.bincount(tally.labels, minlength=classes).tolist() if classes else [],
        source=job.source,
        provider=job.provider,
        mask=_mask_facts(tally, job),
        store=_store_facts(tally, job.settings),
        skipped=len(tally.rejected),
        beton_bytes=beton.stat().st_size,
        beton_sha256=file_digest(beton, threads=threads),
        names_sha256=write_names(beton, tally.names),
        created=utc_time(),
        tool_versions={**tool_versions()},
        tables_sha256=tables_sha256(beton),
        sums_sha256=write_sums(beton, tally.sums),
        prints_sha256=write_prints(beton, tally.prints),
    )
    check_container(beton, write_manifest(beton, manifest))


def _store_facts(tally: Tally, settings: ConversionSettings) -> dict[str, Any]:
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


def _mask_facts(tally: Tally, job: Job) -> dict[str, Any]:
    count, facts = len(tally.names), job.mask_facts[bool(tally.replaced)]
    if tally.edited:  # mask files do not tell what they were made by
        level = most_supervised((facts["supervision"], UNKNOWN))
        facts = {**facts, "supervision": level, "edited": tally.edited}
    return {
        **facts,
        "size": job.settings.mask_size,
        "coverage_mean": tally.coverage / count,
        "empty_share": tally.empty / count,
        "full_share": tally.full / count,
        "fallbacks": len(tally.replaced),
        "stand_ins": tally.stand_ins,
    }


def unsound(place: Place, job: Job) -> str:
    """Return what is wrong with the files of a finished shard, or "".

    A killed machine or a shared disk may have left it cut. All but the samples' own bytes is read.
    """
    beton = Path(job.folder) / f"{STEM}.beton"
    try:
        left_out = read_report(place, str(report_path(beton)))["skipped"]
        size = place.size(str(beton))
        if size < 0:
            return "" if len(left_out) >= len(job.rows) else f"{beton.name} is missing"
        manifest = read_manifest(place.path(str(beton)))
        if size != manifest.beton_bytes:
            return f"{beton.name} has {size:,} bytes, not {manifest.beton_bytes:,}"
        for path, known in (
            (names_path(beton), manifest.names_sha256),
            (sums_path(beton), manifest.sums_sha256),
            (prints_path(beton), manifest.prints_sha256),
        ):
            if place.size(str(path)) < 0 or sha256_file(place.path(str(path))) != known:
                return f"{path.name} is missing or damaged"
        if isinstance(place, LocalPlace):
            check_container(place.path(str(beton)), manifest)
    except DataError as error:
        return str(error)
    return ""


class _LeftOut(BaseModel):
    path: Text
    reason: Text


_REPORTED = ("skipped", "masks_replaced", "warned")
Report = dict[str, list[dict[str, str]]]
"""What a container lacks: file and reason under each of `_REPORTED`."""


def read_report(place: Place, name: str) -> Report:
    """Return the list of what a container lacks; `DataError` if it is none."""
    remedy = 'Copy it again, or write {"skipped": []} there: what was left out is then not known'
    where = f"{place}/{name}"
    if place.size(name) < 0:
        raise DataError(f"{where} is missing. {remedy}")
    try:
        found: Report = place.read(name)
    except DataError as error:
        raise DataError(f"{error}. {remedy}") from error
    of_kind(found, dict[str, list[_LeftOut]], where=where, remedy=remedy, error=DataError)
    return {**{key: [] for key in _REPORTED}, **found}


def _report(tally: Tally) -> dict[str, Any]:
    def listed(items: list[Rejected]) -> list[dict[str, str]]:
        return [{"path": one_line(item.name), "reason": one_line(item.reason)} for item in items]

    return {
        "skipped": listed(tally.rejected),
        "masks_replaced": listed(tally.replaced),
        "warned": listed(tally.warned),
    }
