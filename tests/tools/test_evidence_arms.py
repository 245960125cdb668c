"""The arms of experiments/: what they share, what each changes, and how mistakes are told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harl_fast.errors import ConfigError
from harl_fast.tools.evidence_arms import DRAWN, NETWORK, Trial, chosen, load_plan
from harl_fast.tools.evidence_report import check_claims
from launch.demo import WITHOUT_MASKS
from preprocess.masks.registry import parse_spec

SHIPPED = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of experiments/ that may be spoilt."""
    shutil.copytree(SHIPPED, tmp_path / "experiments")
    return tmp_path / "experiments"


def change(path: Path, **keys: Any) -> None:
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, **keys}))


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, each in pairs for k, v in leaves(each, f"{name}.{key}").items()}
    return {name[1:]: tree}


@pytest.mark.parametrize("quick", [False, True])
def test_arms_of_a_suite_differ_in_what_their_files_say_alone(quick: bool) -> None:
    plan = load_plan(SHIPPED, quick=quick)
    for kind in ("photos", "composites"):
        trained = [trial for trial in plan.trials if trial.kind == kind and trial.arm.trained]
        first = leaves(trained[0].config.model_dump(mode="json"))
        for trial in trained[1:]:
            own = leaves(trial.config.model_dump(mode="json"))
            differing = {key for key in own if own[key] != first[key]}
            changed = {
                word.partition("=")[0]
                for word in (*trial.arm.overrides, *trained[0].arm.overrides, "seed=")
            }
            assert differing <= changed, trial.name
        assert len({(t.config.epochs, t.images) for t in trained}) == 1


def test_every_arm_file_is_run_and_names_a_mask_method() -> None:
    plan = load_plan(SHIPPED)
    files = {str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.glob("*/*.yaml")}
    assert files == {f"{trial.kind}/{trial.name}" for trial in plan.trials}
    for trial in plan.trials:
        method = trial.arm.masks.replace(NETWORK, "n.safetensors").replace(DRAWN, "masks")
        assert parse_spec(method)
        assert trial.arm.asks.endswith((".", "?"))


@pytest.mark.parametrize(
    ("kind", "by", "meant"),
    [
        ("photos", "fivelabels", "'five_labels'"),
        ("photos", "gap:heuristics", "'gap:heuristic'"),
        ("composites", "gap:heuristic", ""),
    ],
)
def test_every_claim_is_by_a_read_out_that_there_is(
    folder: Path, kind: str, by: str, meant: str
) -> None:
    check_claims(load_plan(folder))
    tree = yaml.safe_load((folder / "suites.yaml").read_text())
    tree[kind]["claims"][1]["by"] = by
    change(folder / "suites.yaml", **tree)
    with pytest.raises(ConfigError, match=rf"{kind}: '{by}' is no read-out of its claims.*{meant}"):
        check_claims(load_plan(folder))


def test_composites_without_masks_are_the_demo_s_run_without_masks() -> None:
    (trial,) = chosen(load_plan(SHIPPED, seeds=1).trials, ["composites/byol"])
    assert set(trial.arm.overrides) == set(WITHOUT_MASKS)


def names(trials: list[Trial]) -> list[tuple[str, str, int]]:
    return [(trial.kind, trial.name, trial.seed) for trial in trials]


def test_all_arms_run_under_one_seed_before_the_next() -> None:
    trials = load_plan(SHIPPED, quick=True, seeds=2, epochs=7).trials
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)
    assert {trial.config.epochs for trial in trials} == {7}
    assert {trial.config.seed for trial in trials} == {0, 1}
    assert names(chosen(trials, ["photos/byol"])) == [("photos", "byol", 0), ("photos", "byol", 1)]
    assert {trial.kind for trial in chosen(trials, ["composites"])} == {"composites"}
    assert chosen(trials, []) == trials


def test_an_arm_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'photos/byl'.*did you mean 'photos/byol'"):
        chosen(load_plan(SHIPPED).trials, ["photos/byl"])


def test_mistakes_in_the_files_are_told_with_the_nearest(folder: Path) -> None:
    arm, suites = folder / "photos/center.yaml", folder / "suites.yaml"
    before = arm.read_text()
    change(arm, mask="center")
    with pytest.raises(
        ConfigError, match=r"center\.yaml: unknown key 'mask'; did you mean 'masks'"
    ):
        load_plan(folder)
    arm.write_text(before)
    change(arm, overrides=["loss.typ=byol"])
    with pytest.raises(ConfigError, match=r"photos/center.*loss\.typ"):
        load_plan(folder)
    arm.rename(folder / "photos/centre.yaml")
    with pytest.raises(ConfigError, match=r"arm 'center' has no .*; did you mean 'centre'"):
        load_plan(folder)
    (folder / "photos/centre.yaml").rename(arm)
    arm.write_text(before)
    tree = yaml.safe_load(suites.read_text())
    for part, key, value in (
        (tree["photos"], "baseline", "byl"),
        (tree["photos"]["claims"][0], "over", ["centr"]),
        (tree["composites"]["quick"], "arms", ["exakt"]),
    ):
        kept, part[key] = part[key], value
        suites.write_text(yaml.safe_dump(tree))
        with pytest.raises(ConfigError, match="is none of its arms; did you mean"):
            load_plan(folder)
        part[key] = kept
    tree["composites"]["seed"] = 3
    suites.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"unknown key 'composites\.seed'; did you mean 'seeds'"):
        load_plan(folder)


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("photos", "arms", ["byol", "random", "byol"], "photos: the arm byol stands twice"),
        ("photos", "arms", ["byol", "../composites/exact"], r"photos\.arms\.1: .*\.\./composites"),
        ("composites", "by_noise", {"exact": 1.5}, r"by_noise\.exact: .*1\.5"),
    ],
)
def test_values_that_no_suite_can_have_are_refused(
    folder: Path, kind: str, key: str, value: object, message: str
) -> None:
    tree = yaml.safe_load((folder / "suites.yaml").read_text())
    tree[kind][key] = value
    change(folder / "suites.yaml", **tree)
    with pytest.raises(ConfigError, match=message):
        load_plan(folder)


def test_too_few_epochs_are_refused_before_any_computation() -> None:
    with pytest.raises(ConfigError, match="warmup_epochs"):
        load_plan(SHIPPED, epochs=1)


@pytest.mark.parametrize(
    ("arm", "masks", "word"),
    [
        ("photos/heuristic", "{png: DRAWN}", "DRAWN"),
        ("composites/exact", "{noise: {p: 1.0, base: {selftrained: NETWORK}}}", "NETWORK"),
    ],
)
def test_an_arm_has_the_files_of_its_own_suite_alone(
    folder: Path, arm: str, masks: str, word: str
) -> None:
    change(folder / f"{arm}.yaml", masks=masks)
    with pytest.raises(ConfigError, match=rf"{arm}\.yaml: masks: .* names {word}, which"):
        load_plan(folder)
