"""From finished shards to containers and sets: their manifests, and which file gets which name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harl_fast.data.container.manifest import (
    Manifest,
    merge_manifests,
    read_manifest,
    write_manifest,
)
from harl_fast.errors import DataError
from harl_fast.files import write_json
from preprocess.masks.registry import most_supervised
from preprocess.masks.sources import MaskList
from preprocess.places import Place
from preprocess.publish import ASIDE, Moves
from preprocess.shards import BESIDE, STEM, Job, read_report, report_path, unsound

OF_A_SET = re.compile(
    r"\d{5,}-of-\d{5,}\.(beton|json|names\.txt|sums\.npy|prints\.npy|report\.json)"
)
"""Files in the folder of a set."""
_MANIFESTS = ".manifests.partial"


@dataclass(frozen=True)
class Existing:
    """What is there of a split to which images are added."""

    manifest: Manifest
    shards: list[tuple[str, Manifest]]
    """Of a set: names in its folder and manifests; of a single container: itself."""


@dataclass(frozen=True)
class SplitPlan:
    """How one split is converted."""

    masks: MaskList
    facts: dict[str, str]
    """See `recipe`."""
    jobs: list[Job]
    existing: Existing | None

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.jobs[0].split

    @property
    def single(self) -> bool:
        """Whether one container holds all."""
        return self.existing is None and len(self.jobs) == 1

    @property
    def work(self) -> str:
        """The folder in which finished shards wait."""
        return str(Path(self.jobs[0].folder).parent)

    @property
    def job_names(self) -> list[str]:
        """What their folders are called there."""
        return [Path(job.folder).name for job in self.jobs]

    def names(self) -> list[str]:
        """Return the final name of each job's container."""
        if self.single:
            return [f"{self.split}.beton"]
        before = len(self.existing.shards) if self.existing else 0
        return [self.in_set(before + row) for row in range(len(self.jobs))]

    def in_set(self, number: int) -> str:
        """Return the name of a shard; those that were there before keep theirs."""
        total = len(self.jobs) + (len(self.existing.shards) if self.existing else 0)
        return f"{self.split}/{number:05d}-of-{total:05d}.beton"

    def filled(self, place: Place) -> list[tuple[Job, str]]:
        """Return the jobs that have samples, and the final names of their containers."""
        found = list[tuple[Job, str]]()
        for job, name in zip(self.jobs, self.names(), strict=True):
            if fault := unsound(place, job):
                raise DataError(
                    f"{place}/{job.folder}: {fault}. Run the same command again: it writes this "
                    f"shard anew"
                )
            if place.exists(f"{job.folder}/{STEM}.beton"):
                found.append((job, name))
        return found

    def fault(self, place: Place, job_name: str) -> str:
        """Return what is wrong with a finished job's files, or ""."""
        return unsound(place, self.jobs[self.job_names.index(job_name)])


def assemble(
    place: Place, plans: Sequence[SplitPlan], key: str, relabelled: Mapping[str, Manifest]
) -> Moves:
    """Write the manifests of sets; return how all files of finished plans take their names.

    relabelled: manifests of other splits that take the place of theirs. Raises `DataError` if no
    image of a split could be read.
    """
    keep, moves, last = list[tuple[str, str]](), list[tuple[str, str]](), list[tuple[str, str]]()
    place.remove(_MANIFESTS)
    of_sets = bool(relabelled) or not all(plan.single for plan in plans)
    with place.staging(_MANIFESTS) if of_sets else contextlib.nullcontext(Path()) as fresh:
        for plan in plans:
            filled = plan.filled(place)
            if not filled:
                raise DataError(_nothing_read(place, plan))
            for job, name in filled:
                moves += _files(f"{job.folder}/{STEM}.beton", name)
            if plan.single:
                last.append(moves.pop())  # the manifest
                continue
            if plan.existing and not plan.existing.manifest.shards:
                keep += _files(f"{plan.split}.beton", plan.in_set(0))
            _write_set(fresh, place, plan, filled)
            moves.append((f"{_MANIFESTS}/{plan.split}.report.json", f"{plan.split}.report.json"))
            last.append((f"{_MANIFESTS}/{plan.split}.json", f"{plan.split}.json"))
        for split, manifest in relabelled.items():
            write_manifest(fresh / f"{split}.beton", manifest)
            last.append((f"{_MANIFESTS}/{split}.json", f"{split}.json"))
    old = [name for plan in plans if not plan.existing for name in old_files(place, plan.split)]
    kept = {name for name, _ in keep}
    old += [name for _, name in moves if name not in kept and place.exists(name)]
    aside = [(name, f"{ASIDE}/{name}") for name in dict.fromkeys(old)]
    return Moves(key, [aside, keep, moves, last], [*(plan.work for plan in plans), _MANIFESTS])


def _files(old: str, new: str) -> list[tuple[str, str]]:
    """Return old and new names of a container's files, the manifest's last."""
    beside = [(str(name(Path(old))), str(name(Path(new)))) for name in BESIDE]
    return [(old, new), *beside]


def old_files(place: Place, split: str) -> list[str]:
    """Return the files of a split that are to be replaced, its manifest first."""
    single = [new for _, new in reversed(_files("x", f"{split}.beton")) if place.exists(new)]
    return single + [f"{split}/{name}" for name in place.names(split) if OF_A_SET.fullmatch(name)]


def _write_set(
    folder: Path, place: Place, plan: SplitPlan, filled: Sequence[tuple[Job, str]]
) -> None:
    """Write manifest and report of a set into ``folder``."""
    beton, existing = folder / f"{plan.split}.beton", plan.existing
    reports = [read_report(place, f"{job.folder}/{STEM}.report.json") for job in plan.jobs]
    if existing:
        reports.insert(0, read_report(place, f"{plan.split}.report.json"))
    report = {key: [item for one in reports for item in one.get(key, ())] for key in reports[-1]}
    write_json(report_path(beton), report)
    fresh = [
        (Path(name).name, read_manifest(place.path(f"{job.folder}/{STEM}.beton")))
        for job, name in filled
    ]
    shards, history = fresh, list[dict[str, Any]]()
    if existing:
        shards = [*existing.shards, *fresh]
        history = existing.manifest.history or [_event(existing.manifest, first=0)]
        if not existing.manifest.shards:
            shards[0] = (Path(plan.in_set(0)).name, existing.manifest)
    added = merge_manifests(fresh, [])
    history.append(_event(added, first=existing.manifest.count if existing else 0))
    merged = merge_manifests(shards, history)
    served = most_supervised(manifest.mask["supervision"] for _, manifest in shards)
    mask = {**merged.mask, "supervision": served}
    write_manifest(beton, replace(merged, mask=mask, skipped=len(report["skipped"])))


def _event(manifest: Manifest, *, first: int) -> dict[str, Any]:
    """Return an entry of a set's history: a conversion or an addition."""
    facts = {"created": manifest.created, "source": manifest.source}
    return {**facts, "first": first, "count": manifest.count}


def _nothing_read(place: Place, plan: SplitPlan) -> str:
    """Say that there is no image, with the last one's reason."""
    count = len(plan.masks.split.names)
    last = read_report(place, f"{plan.jobs[-1].folder}/{STEM}.report.json")["skipped"][-1]
    return (
        f"none of the {count:,} images of {plan.split} could be read; the last was "
        f"{last['path']}: {last['reason']}. Get them again, or give other images"
    )
