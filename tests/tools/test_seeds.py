"""Folders of runs of several seeds side by side, against scipy's paired t interval."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from harl_fast.errors import DataError
from harl_fast.eval.results import read_result
from harl_fast.tools.compare import main
from harl_fast.tools.report import markdown, page
from harl_fast.tools.seeds import compare_any
from tests.tools.results import make_result

SEEDS = (0, 1, 2)


def repeats(folder: Path, accuracies: tuple[float, ...], **values: Any) -> Path:
    """Write a folder of runs, one per seed from 0 on, as `launch/finetune.py --seeds` does."""
    for seed, accuracy in enumerate(accuracies):
        run = folder / f"seed-{seed}"
        place = run / "eval" / "pets-semi-10pct"
        make_result(place, accuracy=accuracy, seed=seed, protocol="semi-10pct", **values)
    seeds = list(range(len(accuracies)))
    (folder / "seeds.json").write_text(json.dumps({"seeds": seeds, "metrics": {}, "summary": {}}))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return base and better, whose differences of 3 seeds are all positive."""
    base = repeats(tmp_path / "base", (0.40, 0.50, 0.60))
    return base, repeats(tmp_path / "better", (0.50, 0.61, 0.69))


def measured(folder: Path, metric: str) -> list[float]:
    places = (folder / f"seed-{seed}" / "eval" / "pets-semi-10pct" for seed in SEEDS)
    return [read_result(place).metrics[metric].value for place in places]


def test_differences_are_paired_by_seed_with_students_interval(pair: tuple[Path, Path]) -> None:
    base, better = compare_any(pair).entries
    for metric in ("top1", "mean_per_class"):
        theirs, ours = (measured(folder, metric) for folder in pair)
        paired = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        alone = stats.ttest_1samp(ours, 0.0).confidence_interval(0.95)
        found, mean = better.differences[metric], better.result.metrics[metric]
        assert (found.low, found.high) == pytest.approx((paired.low, paired.high))
        assert (mean.low, mean.high) == pytest.approx((alone.low, alone.high))
        # The seeds differ far more than each pair does: unpaired, nothing would be clear.
        apart = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
        assert found.low > 0 > apart.low and found.clear
    assert (base.name, better.name, base.differences) == ("base", "better", {})


def test_classes_won_are_means_over_the_seeds(pair: tuple[Path, Path]) -> None:
    won = {change.name: change for change in compare_any(pair).entries[1].won}
    each = [
        {name: right / count for name, (count, right) in hits(folder / f"seed-{s}").items()}
        for folder in pair
        for s in SEEDS
    ]
    for name, change in won.items():
        before, after = (100 * sum(one[name] for one in part) / 3 for part in (each[:3], each[3:]))
        assert (change.before, change.after, change.count) == pytest.approx((before, after, 100))
    assert won


def hits(run: Path) -> dict[str, tuple[int, int]]:
    lines = (run / "eval" / "pets-semi-10pct" / "per_class.csv").read_text().splitlines()[1:]
    return {row[0]: (int(row[1]), int(row[2])) for row in (line.split(",") for line in lines)}


def test_the_report_has_the_means_and_each_seed(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, pair), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "Student's t over the runs of 3 seeds (0, 1, 2)" in text and "Each seed" in text
    mean = sum(measured(pair[1], "mean_per_class")) / 3
    assert f"| better | {mean:.2f} " in text
    for seed in SEEDS:
        assert f"| {seed} | better | {measured(pair[1], 'mean_per_class')[seed]:.2f} " in text
        assert f"better/seed-{seed} step 100" in text
    assert re.search(r"^better .*\+\d+\.\d\d \[\+", capsys.readouterr().out, re.MULTILINE)


def test_folders_that_are_no_pairs_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several seeds and .*seed-1 does not: .*seed-0"):
        compare_any([pair[0], pair[1] / "seed-1"])
    fewer = repeats(tmp_path / "fewer", (0.5, 0.6))
    with pytest.raises(DataError, match=r"seeds 0, 1 and .* of 0, 1, 2: .*same --seed"):
        compare_any([pair[0], fewer])
    other = repeats(tmp_path / "other", (0.5, 0.6, 0.7), data={"subset_sha256": "f" * 64})
    with pytest.raises(DataError, match=r"not comparable.*training subset is 'ffffffffffff'"):
        compare_any([pair[0], other])
    forced = compare_any([pair[0], other], force=True)
    assert "Not comparable" in markdown(forced) and "Not comparable" in page(forced)
    (other / "seeds.json").write_text('{"seeds": ["0"]}')
    with pytest.raises(DataError, match=r"seeds\.json: seeds\.0: .*Run the fine-tuning again"):
        compare_any([pair[0], other])


def test_seeds_of_one_folder_must_be_of_the_same_data(tmp_path: Path) -> None:
    pair = [repeats(tmp_path / name, (0.5, 0.6)) for name in ("base", "better")]
    for folder in pair:
        place = folder / "seed-1" / "eval" / "pets-semi-10pct"
        make_result(place, accuracy=0.5, protocol="semi-10pct", data={"train_count": 7})
    with pytest.raises(DataError, match="with base/seed-0 step 100: base/seed-1 step 100: number"):
        compare_any(pair)


def test_the_same_seed_folder_given_twice_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="given twice"):
        compare_any([pair[0], pair[0]])
    with pytest.raises(DataError, match="give two or more"):
        compare_any(pair[:1])
