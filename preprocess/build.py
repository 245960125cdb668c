"""From a source to containers: shards are converted, then take their names together."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from harl_fast.data.container.manifest import Manifest
from harl_fast.errors import DataError, one_line
from harl_fast.files import Progress, check_output
from harl_fast.pool import TASKS_AHEAD, Team
from preprocess.adding import Base
from preprocess.assemble import OF_A_SET, Existing, SplitPlan, assemble, old_files
from preprocess.convert import ConversionSettings, Sample, Task, convert_and_keep
from preprocess.masks.controls import CANVAS_PX
from preprocess.masks.sources import MaskList, open_masks
from preprocess.places import LocalPlace, Place
from preprocess.publish import publish
from preprocess.ray import cluster, convert_on
from preprocess.shards import BESIDE, Job, write_shard
from preprocess.sources import Rejected, Source
from preprocess.summary import summarise
from preprocess.work import (
    Inputs,
    close_work,
    digest_of,
    key_of,
    open_work,
    recipe,
    shard_ranges,
    work_folder,
)
from preprocess.writer import write_parts


def build(
    source: Source,
    place: Place,
    settings: ConversionSettings,
    *,
    masks: Path | None,
    workers: int,
    shard_size: int | None = None,
    base: Base | None = None,
    finished: str = "",
    ray: str | None = None,
) -> list[Manifest]:
    """Write <split>.beton, or the set <split>/, to ``place`` for each split of a source.

    masks: a tree of mask files, which come before the settings' mask method.
    shard_size: images per shard, see `shard_ranges`. base: the set to which the images are added.
    ray: address of a cluster that converts the shards, see `cluster`.
    finished: what `finish` returned just now. Shards that the same conversion made before it was
    killed are taken as they are. All files take their names at the end, see `publish`. Returns the
    manifests.
    """
    names = [name for split in source.splits.values() for name in split.names]
    lists = {
        name: open_masks(
            split, source.classes, method=settings.mask_method, given=masks, names=names
        )
        for name, split in source.splits.items()
    }
    plans = []
    for name, mask_list in lists.items():
        _check_masks(mask_list, settings)
        there = base.splits[name] if base else None
        plans.append(_plan(name, mask_list, source, settings, shard_size, there))
        _check_outputs(place, plans[-1], adding=base is not None)
    if base is None:
        _check_leftover(place, source)
    key = key_of([job.folder for plan in plans for job in plan.jobs])
    rate = 0.0
    if finished == key:
        print("this conversion was complete: its files have their names now")
    else:
        try:
            for plan in plans:
                fault = functools.partial(plan.fault, place)
                open_work(place, plan.work, plan.facts, plan.job_names, fault=fault)
            rate = _convert(place, plans, workers=workers, ray=ray)
            publish(place, assemble(place, plans, key, base.relabelled if base else {}))
        except BaseException:
            for plan in plans:
                close_work(place, plan.work, plan.job_names)
            raise
    return [summarise(place, plan.split, plan.masks, source.classes, rate) for plan in plans]


def _plan(
    split: str,
    masks: MaskList,
    source: Source,
    settings: ConversionSettings,
    shard_size: int | None,
    existing: Existing | None,
) -> SplitPlan:
    first = existing.manifest.count if existing else 0
    facts = recipe(source, masks, settings, shard_size=shard_size, first=first)
    inputs = Inputs.of(masks, split)
    parts = shard_ranges(inputs.images[:, 0], shard_size)
    several = existing is not None or len(parts) > 1
    jobs = [
        Job(
            folder=f"{work_folder(split, facts)}/{number:05d}-{digest_of(masks, inputs, rows)}",
            shown=f"{split}/{number:05d}" if several else split,
            split=split,
            rows=rows,
            first=first,
            source=source.name,
            provider=source.provider,
            classes=source.classes,
            settings=settings,
            mask_facts=(masks.final_facts(fallbacks=0), masks.final_facts(fallbacks=1)),
            rejected=masks.split.rejected if number == 0 else [],
        )
        for number, rows in enumerate(parts)
    ]
    return SplitPlan(masks, facts, jobs, existing)


def _check_outputs(place: Place, plan: SplitPlan, *, adding: bool) -> None:
    _check_ours(place, plan.split)
    if isinstance(place, LocalPlace):
        beton = place.root / f"{plan.split}.beton"
        for path in (beton, *(beside(beton) for beside in BESIDE)):
            check_output(path, option="--out", of_container=True)
        if not plan.single:
            check_output(place.root / plan.split, option="--out", folder=True)
    foreign = [name for name in place.names(plan.split) if not OF_A_SET.fullmatch(name)]
    if foreign and not plan.single:
        remedy = "move them away" if adding else "move them away, or choose another --out"
        raise DataError(
            f"{place}/{plan.split} is to hold the shards of {plan.split}, but holds other files "
            f"({one_line(foreign[0])}): {remedy}"
        )


def _check_ours(place: Place, split: str) -> None:
    """Raise `DataError` for files that are only named as a container's, such as COCO's."""
    manifest, report = f"{split}.json", f"{split}.report.json"
    foreign = there = old_files(place, split)
    why = "is no manifest" if manifest in there else "has no manifest beside it"
    with contextlib.suppress(DataError):
        tree = place.read(manifest) if there else {}
        if "beton_sha256" in tree:
            of_set, why = bool(tree.get("shards")), "belongs to no container"
            others = [name for name in there if ("/" in name) != of_set]
            foreign = [name for name in others if name not in (manifest, report)]
    if foreign:
        raise DataError(
            f"{place}/{foreign[0]} would be replaced, and {why} of this program: move it away, or "
            f"choose another --out"
        )


def _check_leftover(place: Place, source: Source) -> None:
    """Raise `DataError` if an older val would stay beside the new train."""
    left = [name for name in ("val.beton", "val.json") if place.exists(name)]
    if left and "val" not in source.splits:
        raise DataError(
            f"{place}/{left[0]} is of an earlier conversion, and this source has no held-out part: "
            f"delete it and what is named like it, give --val a share, or choose another --out"
        )


def _check_masks(masks: MaskList, settings: ConversionSettings) -> None:
    """Compare how `make masks` made the mask files, if it did, with how images are stored."""
    if masks.made is None:
        return
    if settings.mask_size > CANVAS_PX:
        raise DataError(
            f"--mask-size {settings.mask_size}: `python -m preprocess.masks` makes masks of "
            f"{CANVAS_PX} px; give a size of at most that, or leave --masks out"
        )
    for what, made, asked in (
        ("at --max-resolution", masks.made["max_resolution"], settings.max_resolution),
        ("of files read as", masks.made.get("reading"), settings.reading.facts()),
    ):
        if made != asked:
            print(
                f"note: the masks were made {what} {made}, not {asked}: they serve, but may differ "
                f"a little from fresh ones"
            )


def _convert(place: Place, plans: Sequence[SplitPlan], *, workers: int, ray: str | None) -> float:
    """Convert all shards that are not there yet; return images per second, 0 if all were."""
    missing = [[job for job in plan.jobs if not place.exists(job.folder)] for plan in plans]
    total = sum(len(job.rows) for jobs in missing for job in jobs)
    start = time.monotonic()
    with Progress(total, label="writing") as progress:
        if ray is not None and total:
            _convert_there(place, plans, missing, workers, ray, progress)
        else:
            for plan, jobs in zip(plans, missing, strict=True):
                if jobs:
                    _convert_here(place, plan, jobs, workers, progress)
        progress.label = "writing"
    return total / (time.monotonic() - start)


def _convert_there(
    place: Place,
    plans: Sequence[SplitPlan],
    missing: Sequence[Sequence[Job]],
    workers: int,
    address: str,
    progress: Progress,
) -> None:
    """Convert shards side by side, one process at work on each."""
    pairs = [(plan, job) for plan, jobs in zip(plans, missing, strict=True) for job in jobs]
    work = [
        (job, functools.partial(job.tasks, plan.masks), plan.masks.methods) for plan, job in pairs
    ]
    with cluster(address, workers=workers) as ray:
        cores = int(ray.cluster_resources().get("CPU", 1))
        progress.label = f"writing {len(work):,} shards on {cores:,} cores"
        if len(work) < cores:
            print(
                f"note: {len(work):,} shards use as many of the cluster's {cores:,} cores, one "
                f"each: a smaller --shard-size uses more"
            )
        convert_on(ray, place, work, progress.advance)


def _convert_here(
    place: Place, plan: SplitPlan, jobs: Sequence[Job], workers: int, progress: Progress
) -> None:
    """Convert shards one after another, all processes at work on the same one."""
    settings, methods = jobs[0].settings, plan.masks.methods
    members = plan.masks.split.members
    forward = members is not None and members.forward
    team = Team[list[Task], list[Sample | Rejected]](
        functools.partial(convert_and_keep, settings=settings, methods=methods),
        workers=min(workers, sum(job.chunks for job in jobs)),
        run=TASKS_AHEAD if forward else 1,
        describe=lambda chunk: f"{chunk[0].name} to {chunk[-1].name}",
        then=write_parts,
    )
    with team:
        results = team.map(itertools.chain.from_iterable(job.tasks(plan.masks) for job in jobs))
        for job in jobs:
            number = f" shard {plan.jobs.index(job) + 1} of {len(plan.jobs)}"
            progress.label = f"writing {plan.split}{number if len(plan.jobs) > 1 else ''}"
            chunks = itertools.islice(results, job.chunks)
            write_shard(place, job, chunks, progress.advance, team)
