"""`make evidence`: what it refuses beforehand, what it leaves out, and two arms of it whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from harl_fast.errors import ConfigError, HarlError
from harl_fast.lock import lock_beside, locked
from harl_fast.steps import ROOT
from harl_fast.tools import evidence
from launch import evidence as program


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the list of the trials of each call from now on, none of which runs."""
    found: list[list[str]] = []
    monkeypatch.setattr(
        evidence, "run_all", lambda _, trials, after: found.append([t.slug for t in trials])
    )
    return found


def test_quick_has_a_folder_and_a_page_of_its_own() -> None:
    args = program.parse([])
    assert args.out == ROOT / "runs/evidence" and args.page == ROOT / "docs/evidence.md"
    args = program.parse(["--quick"])
    assert args.out == ROOT / "runs/evidence-quick" and args.page == args.out / "evidence.md"


def test_without_photos_composites_alone_are_run(
    ran: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, photos = tmp_path / "out", tmp_path / "photos"
    assert program.main(["--quick", "--out", str(out), "--seeds", "1"]) == 0
    assert "photos are left out" in capsys.readouterr().out
    assert "Not yet run" in (out / "evidence.md").read_text()
    with pytest.raises(ConfigError, match="--only names photos: give their folder"):
        program.main(["--quick", "--out", str(out), "--only", "photos/byol"])
    photos.mkdir()
    assert program.main(["--quick", "--out", str(out), "--data", str(photos)]) == 0
    assert program.main(["--quick", "--out", str(out), "--only", "photos/byol"]) == 0
    without, with_photos, again = ran
    assert all(slug.startswith("composites-") for slug in without)
    assert {slug.partition("-")[0] for slug in with_photos} == {"photos", "composites"}
    assert again == ["photos-byol-0", "photos-byol-1"]


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ("hueristic", "did you mean 'heuristic'?"),
        ("{shuffled: {base: {onnx: gone.onnx}}}", "there is no file gone.onnx"),
        ("{noise: {p: 0.1, base: {png: gone}}}", "the mask tree gone is no folder"),
    ],
)
def test_masks_that_no_conversion_makes_are_refused_before_the_first_arm(
    ran: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    masks: str,
    said: str,
) -> None:
    arms, arm = tmp_path / "experiments", "composites/inverted.yaml"
    shutil.copytree(ROOT / "experiments", arms)
    (arms / arm).write_text(f"asks: Is it told?\nmasks: '{masks}'\n")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    with pytest.raises(HarlError, match="exit code 2"):
        program.main(["--quick", "--seeds", "1"])
    assert f"experiments/{arm}: masks: " in (err := capfd.readouterr().err) and said in err
    assert not ran and not (tmp_path / "runs/evidence-quick/data").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "composites/exakt"], "did you mean 'composites/exact'"),
        (["--data", "no-photos"], "no-photos is not there"),
        (["--epochs", "1"], "warmup_epochs"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    options: list[str], said: str, ran: list[list[str]], tmp_path: Path
) -> None:
    places = ["--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md")]
    with pytest.raises(ConfigError, match=said):
        program.main([*places, *options])
    assert not ran and not any(tmp_path.iterdir())


def test_a_misspelt_read_out_is_told_before_anything_is_made(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    suites = tmp_path / "experiments/suites.yaml"
    suites.write_text(suites.read_text().replace("by: five_labels", "by: fivelabels"))
    monkeypatch.setattr(program, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match=r"fivelabels.*did you mean 'five_labels'"):
        program.main(["--only", "composites"])
    assert not ran and [path.name for path in tmp_path.iterdir()] == ["experiments"]


def test_a_folder_is_used_by_one_process_at_a_time(ran: list[list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(lock_beside(out), output=out), pytest.raises(HarlError, match="is in use"):
        program.main(["--quick", "--out", str(out)])
    assert not ran


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_arms_in_the_quick_form(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Under the real launcher; the second call has nothing left to do."""
    names = ["composites/random", "composites/exact"]
    command = ["--quick", "--seeds", "2", "--out", str(tmp_path / "out"), "--only", *names]
    assert program.main(command) == 0
    said = capfd.readouterr().out
    assert "[4/4] composites/exact, seed 1; about" in said
    results = sorted((tmp_path / "out/results").glob("*.json"))
    assert len(results) == 4
    for path in results:
        accuracy = json.loads(path.read_text())["accuracy"]
        assert len(accuracy) == 6 and all(0 <= value <= 100 for value in accuracy.values())
    page = (tmp_path / "out/evidence.md").read_text()
    assert "figures mean nothing" in page and "300 training and 100 validation images" in page
    assert re.search(r"^\| `exact` \| [0-9.]+ ± [0-9.]+ \|", page, flags=re.MULTILINE)
    assert program.main(command) == 0
    assert "$ " not in capfd.readouterr().out
