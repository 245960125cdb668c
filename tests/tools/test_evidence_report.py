"""The page of `make evidence`: its figures against plain sums, its sentences in every outcome."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harl_fast.tools.evidence_arms import Claim, Plan, Trial, load_plan
from harl_fast.tools.evidence_report import Findings, claim_text, findings, write_page
from harl_fast.tools.evidence_scores import PROBES, READ_OUTS

SHIPPED = Path(__file__).parents[2] / "experiments"
T_OF_3 = 4.302652729911275
"""97.5 % quantile of Student's t with 2 degrees of freedom."""


def half_width(values: Sequence[float]) -> float:
    return T_OF_3 * statistics.stdev(values) / math.sqrt(3)


def result(trial: Trial, accuracy: Mapping[str, float]) -> dict[str, Any]:
    more = {"images_seen": 45_000, "seconds": 180.0, "curve": [[10, 20.0], [20, 20.0 + trial.seed]]}
    return {
        "time": f"2026-11-2{trial.seed}T10:00:00+00:00",
        "provenance": {"precision": "bf16"},
        "accuracy": dict(accuracy),
        "counts": {"train": 3000, "val": 1000},
        "machine": "2 cores of a processor",
        "code": "0.1",
        **(more if trial.arm.trained else {}),
    }


def level(trial: Trial, *, masks_help: bool) -> float:
    """Return a made-up accuracy: of an arm, a little of its seed, and a little of both."""
    base = {"random": 20.0, "exact": 50.0 if masks_help else 25.0, "inverted": 15.0}
    wobble = (0.0, 0.4, -0.3)[trial.seed]
    return base.get(trial.name, 30.0) + 3 * trial.seed + wobble * (trial.name == "exact")


def composites(*, masks_help: bool = True) -> tuple[Plan, dict[Trial, dict[str, Any]]]:
    plan = load_plan(SHIPPED)
    found = {}
    for trial in plan.trials:
        if trial.kind == "composites":
            value = level(trial, masks_help=masks_help)
            other = {"scene": 100 - value, "scene_knn": 100 - value}
            found[trial] = result(trial, dict.fromkeys(READ_OUTS["composites"], value) | other)
    return plan, found


def cells(page: str, arm: str, number: int = 0) -> list[str]:
    """Return an arm's cells in the page's table of a number."""
    page = page.partition("\n## ")[2]  # behind what is asked
    row = re.findall(rf"^\| `{re.escape(arm)}` \| (.*) \|$", page, flags=re.MULTILINE)[number]
    return [cell.strip() for cell in row.split(" | ")]


def test_tables_hold_means_and_paired_differences_with_their_intervals(tmp_path: Path) -> None:
    plan, found = composites()
    write_page(tmp_path / "page.md", plan, found, quick=False)
    page = (tmp_path / "page.md").read_text()
    values = {
        name: [found[t]["accuracy"]["object"] for t in found if t.name == name]
        for name in ("exact", "byol")
    }
    mean, half = statistics.fmean(values["exact"]), half_width(values["exact"])
    assert cells(page, "exact")[0] == f"{mean:.1f} ± {half:.1f}"
    gaps = [a - b for a, b in zip(values["exact"], values["byol"], strict=True)]
    # The seeds move both arms alike, so that the paired interval is far narrower.
    assert half_width(gaps) < 1 < 5 < half
    expected = f"**{statistics.fmean(gaps):+.1f} ± {half_width(gaps):.1f}**"
    assert cells(page, "exact", 1)[0] == expected
    assert cells(page, "byol", 1) == ["-"] * len(READ_OUTS["composites"])
    assert cells(page, "shuffled", 1)[0] == "+0.0 ± 0.0"  # no difference is not bold


def test_the_page_says_what_it_stands_on_and_what_is_missing(tmp_path: Path) -> None:
    plan, found = composites()
    gone = [trial for trial in found if trial.name == "noise-0.5" and trial.seed == 2]
    part = {trial: each for trial, each in found.items() if trial not in gone}
    write_page(tmp_path / "page.md", plan, part, quick=False)
    page = (tmp_path / "page.md").read_text()
    assert "3,000 training and 1,000 validation images; 2 to 3 seeds of 9 arms" in page
    assert "45,000 images in a training; 1h09m of training in bf16" in page  # 23 x 180 s
    assert "2 cores of a processor; 2026-11-20 to 2026-11-22, code 0.1" in page
    assert "composites/noise-0.5 (seed 2)." in page and "photos/byol (seed 0, 1, 2);" in page
    assert "quick form" not in page and "Not yet run" not in page
    for name in re.findall(r"!\[[^\]]+\]\((assets/[^)]+)\)", page):
        assert Image.open(tmp_path / name).size[0] > 400
    assert page.count("![") == 3


def test_before_any_run_the_page_says_so(tmp_path: Path) -> None:
    plan = load_plan(SHIPPED)
    write_page(tmp_path / "page.md", plan, {}, quick=True)
    page = (tmp_path / "page.md").read_text()
    assert "**Not yet run.**" in page and "![" not in page and "## " not in page
    for trial in plan.trials:
        assert f"| `{trial.name}` |" in page and trial.arm.asks in page


def test_the_quick_form_is_marked(tmp_path: Path) -> None:
    plan, found = composites()
    write_page(tmp_path / "page.md", plan, found, quick=True)
    assert "its figures mean nothing" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("masks_help", [True, False])
def test_sentences_follow_the_results(masks_help: bool, tmp_path: Path) -> None:
    plan, found = composites(masks_help=masks_help)
    write_page(tmp_path / "page.md", plan, found, quick=False)
    page = (tmp_path / "page.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("- **")]
    (first, *_) = [line for line in lines if "turn the network to the object" in line]
    if masks_help:
        assert first.startswith("- **Holds**") and "+20.0" in first
    else:
        assert first.startswith("- **Does not hold**") and "-5.0" in first
        assert "the other way round beside byol and shuffled" in first
    (scenes,) = [line for line in lines if "Inverted masks serve scenes" in line]
    assert scenes.startswith("- **Holds**")


def of(values: Mapping[str, Sequence[float]]) -> Findings:
    arms = {
        name: {seed: {"accuracy": {"knn": value}} for seed, value in enumerate(each)}
        for name, each in values.items()
    }
    return Findings("photos", load_plan(SHIPPED).suites["photos"], arms)


@pytest.mark.parametrize(
    ("masks", "lower", "head"),
    [
        ([31.0, 41.2, 50.9], False, "**Holds**"),
        ([29.0, 39.2, 48.9], False, "**Does not hold**"),
        ([31.0, 39.0, 50.2], False, "**Not shown**"),
        ([29.0, 39.2, 48.9], True, "**Holds**"),
        ([31.0, 41.2, 50.9], True, "**Does not hold**"),
        ([31.0], False, "**Not known yet**"),
    ],
)
def test_a_claim_needs_an_interval_without_0(masks: list[float], lower: bool, head: str) -> None:
    found = of({"center": [30.0, 40.0, 50.0], "heuristic": masks})
    claim = Claim(claim="Masks help", arm="heuristic", over=("center",), by="knn", lower=lower)
    assert claim_text(claim, found, "k-NN").startswith(f"{head}: Masks help.")


def test_a_claim_is_as_weak_as_its_weakest_comparison() -> None:
    claim = Claim(claim="Masks help", arm="masks", over=("byol", "center"), by="knn")
    values = {"masks": [31.0, 41.2, 50.9], "byol": [30.0, 40.0, 50.0], "center": [31.5, 41.0, 51.0]}
    assert claim_text(claim, of(values), "k-NN").startswith("**Not shown**")
    values["center"] = [20.0, 30.0, 40.0]
    assert claim_text(claim, of(values), "k-NN").startswith("**Holds**")
    del values["center"]
    assert "Two seeds of masks and center" in claim_text(claim, of(values), "k-NN")


def test_only_seeds_of_both_arms_are_paired() -> None:
    found = of({"a": [10.0, 21.0, 33.0], "b": [9.0, 19.0]})
    each = found.difference("a", "b", "knn")
    assert each is not None and each.value == pytest.approx(1.5)
    assert found.difference("a", "b", "linear") is None


def test_probes_are_told_by_their_masks_and_left_out_of_arms_that_used_them(tmp_path: Path) -> None:
    plan = load_plan(SHIPPED, seeds=1)
    found = {}
    for trial in plan.trials:
        if trial.kind == "photos":
            probes = [m for m in trial.suite.probes if m not in trial.arm.masks]
            altered = {f"{what}:{masks}": 12.5 for masks in probes for what in PROBES}
            found[trial] = result(trial, dict.fromkeys(READ_OUTS["photos"], 30.0) | altered)
    assert {*findings(plan, found)} == {"photos"}
    write_page(tmp_path / "page.md", plan, found, quick=False)
    page = (tmp_path / "page.md").read_text()
    assert cells(page, "byol", 0) == ["30.0"] * 5
    assert cells(page, "heuristic", 1) == ["-"] * 5 and cells(page, "heuristic", 2) == ["12.5"] * 5
    assert cells(page, "selftrained", 1) == ["12.5"] * 5
    assert "**Not known yet**: The features depend less on the background" in page
