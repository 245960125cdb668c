"""Folders of runs of several seeds side by side: differences are paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from harl_fast.errors import DataError
from harl_fast.eval.metrics import Score
from harl_fast.kinds import Whole, of_kind
from harl_fast.runfiles import SEEDS
from harl_fast.textfile import read_json
from harl_fast.tools.comparison import (
    Comparison,
    Entry,
    class_changes,
    compare,
    differing,
    refuse,
    same_samples,
)
from harl_fast.tools.paired import over_repeats


class _SeedsFile(BaseModel):
    seeds: Annotated[list[Whole], Field(min_length=2)]


def compare_any(paths: Sequence[Path], *, force: bool = False, seed: int = 0) -> Comparison:
    """Return results, runs, or folders of runs of the same seeds side by side.

    A folder of seeds is what ``launch/finetune.py --seeds`` writes. Of such folders each entry has
    the mean of the seeds' accuracies, and of their differences to the first folder's run of the
    same seed, with Student's t interval over the seeds. force, seed: see `comparison.compare`.
    Raises DataError, also for a folder of seeds beside anything else.
    """
    seeds = {path: _seeds_of(path) for path in paths}
    several = [path for path in paths if seeds[path]]
    if not several:
        return compare(paths, force=force, seed=seed)
    first = several[0]
    for path in paths:
        if not seeds[path]:
            raise DataError(
                f"{first} holds runs of several seeds and {path} does not: compare folders of "
                f"seeds with one another, or single runs such as {first}/seed-{seeds[first][0]}"
            )
        if seeds[path] != seeds[first]:
            raise DataError(
                f"{path} has runs of seeds {_text(seeds[path])} and {first} of "
                f"{_text(seeds[first])}: differences are paired by seed, so repeat both with the "
                f"same --seed and --seeds"
            )
    by_seed = {
        number: compare([path / f"seed-{number}" for path in paths], force=force, seed=seed)
        for number in seeds[first]
    }
    return _joined(paths, by_seed, force=force)


def _seeds_of(folder: Path) -> list[int]:
    """Return the seeds of the runs in a folder, ascending; none for any other folder or file."""
    path = folder / SEEDS
    if not path.is_file():
        return []
    tree = read_json(path, error=DataError, most_bytes=1 << 20)
    remedy = "Run the fine-tuning again with --resume"
    return sorted(of_kind(tree, _SeedsFile, where=str(path), remedy=remedy, error=DataError).seeds)


def _text(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _joined(paths: Sequence[Path], by_seed: dict[int, Comparison], *, force: bool) -> Comparison:
    """Return the comparisons of all seeds as one."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    each = list(by_seed.values())
    base = each[0].entries[0]
    warnings = [
        f"{one.entries[0].name}: {difference}"
        for one in each[1:]
        for difference in differing(base.result, one.entries[0].result)
    ]
    if not force:
        refuse(warnings, base=base.name)
    warnings += [warning for one in each for warning in one.warnings]
    entries = [
        _entry(name, path, [one.entries[place] for one in each], [one.entries[0] for one in each])
        for place, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    return Comparison(entries, warnings, by_seed)


def _entry(name: str, folder: Path, runs: Sequence[Entry], bases: Sequence[Entry]) -> Entry:
    """Return the entry of one folder: means over its runs. bases: of the first folder."""
    results = [run.result for run in runs]
    metrics = {
        metric: Score(**vars(over_repeats([each.metrics[metric].value for each in results])))
        for metric in results[0].metrics
    }
    differences = {
        metric: over_repeats([run.differences[metric].value for run in runs])
        for metric in runs[0].differences
        if all(metric in run.differences for run in runs)
    }
    entry = Entry(name, folder.resolve(), replace(results[0], metrics=metrics, knn={}), differences)
    if differences and all(same_samples(results[0], each) for each in results):
        won, lost = class_changes(results, [base.result for base in bases])
        entry = replace(entry, won=won, lost=lost)
    return entry
