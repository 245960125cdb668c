"""Results side by side: what is refused, what the report says, and that it needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from harl_fast.errors import DataError
from harl_fast.eval.metrics import Predictions
from harl_fast.eval.results import read_result, write_result
from harl_fast.tools.compare import main
from harl_fast.tools.comparison import compare, find_results
from harl_fast.tools.curves import find_curves
from harl_fast.tools.report import markdown, page
from tests.tools.results import make_result

CLASSES = ("cat", "$x$ <b>", "a|b", "newt", "owl", "pig")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return the runs base and better, each with a result on the same samples."""
    runs = tmp_path / "base", tmp_path / "better"
    for run, accuracy in zip(runs, ([0.5] * 6, [0.9, 0.9, 0.9, 0.5, 0.5, 0.1]), strict=True):
        (run / "checkpoints").mkdir(parents=True)
        make_result(run / "eval" / "pets-cached", accuracy=accuracy, classes=CLASSES, step=200)
    return runs


def other(folder: Path, **values: Any) -> Path:
    make_result(folder, **{"accuracy": 0.5, "classes": CLASSES, **values})
    return folder


def test_differences_are_of_the_same_samples(pair: tuple[Path, Path]) -> None:
    first, second = compare(pair).entries
    right, base = ((r.predictions.predicted == r.predictions.labels).double() for r in (
        second.result, first.result))  # fmt: skip
    assert second.differences["top1"].value == pytest.approx(100 * float((right - base).mean()))
    assert second.differences["mean_per_class"].clear and first.differences == {}
    assert [change.name for change in second.lost] == ["pig"]
    assert {change.name for change in second.won} == {"cat", "$x$ <b>", "a|b"}
    assert [c.points for c in second.won] == sorted((c.points for c in second.won), reverse=True)


def test_another_order_of_the_same_samples_is_the_same(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    expected = compare(pair).entries[1].differences
    result = read_result(pair[1] / "eval" / "pets-cached")
    order = torch.randperm(len(result.ids))
    found = {name: values[order] for name, values in vars(result.predictions).items()}
    mixed: dict[str, Any] = {"ids": result.ids[order], "names": [result.names[i] for i in order]}
    mixed["predictions"] = Predictions(**found)
    write_result(pair[1] / "eval" / "pets-cached", dataclasses.replace(result, **mixed))
    assert compare(pair).entries[1].differences == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"protocol": "logreg"}, "protocol is 'logreg', not 'cached'"),
        ({"preprocessing": {"size_px": 96}}, "image size is 96, not 64"),
        ({"preprocessing": {"crop": 1.0}}, "crop is 1.0, not 0.875"),
        ({"settings": {"epochs": 1}}, "setting epochs is 1, not 100"),
        ({"settings": {"knn_temperature": 50.0}}, "setting knn_temperature is 50.0, not 0.07"),
        ({"data": {"val_sha256": "e" * 64}}, "validation container is 'eeeeeeeeeeee'"),
        ({"data": {"train_count": 12}}, "number of training samples is 12, not 1200"),
        ({"data": {"subset_sha256": "f" * 64}}, "the training subset is 'ffffffffffff', not ''"),
        ({"classes": CLASSES[::-1]}, "the classes, or their order, are others"),
        ({"ids": torch.arange(600) + 1}, "the validation samples are others"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_forced_is_marked(
    pair: tuple[Path, Path], tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    odd = other(tmp_path / "odd" / "eval" / "pets-cached", **values)
    with pytest.raises(DataError, match=r"not comparable with base step 200: .*--force") as error:
        compare([pair[0], odd])
    assert said in str(error.value) and "\n" not in str(error.value)
    forced = compare([pair[0], odd], force=True)
    for text in (markdown(forced), page(forced)):
        assert "Not comparable" in text
    paired = "ids" not in values and "classes" not in values
    assert bool(forced.entries[1].differences) == paired
    assert ("not paired: other samples" in markdown(forced)) == (not paired)


def test_settings_that_one_result_does_not_state_are_not_compared(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    older = other(tmp_path / "older" / "eval" / "pets-cached", settings={})
    assert compare([pair[0], older]).warnings == compare([older, pair[0]]).warnings == []


def test_the_name_of_the_data_cannot_break_markdown(tmp_path: Path) -> None:
    name = {"name": "<img src=x> [a](b) `c`"}
    places = [other(tmp_path / run / "eval" / "pets-cached", data=name) for run in "ab"]
    title = markdown(compare(places)).splitlines()[0]
    assert title.endswith(r"on \<img src=x\> \[a\](b) \`c\`")


def test_a_run_stands_for_the_result_that_all_have(pair: tuple[Path, Path]) -> None:
    other(pair[0] / "eval" / "pets-logreg", protocol="logreg")
    other(pair[0] / "eval" / "pets-cached-1", step=100)  # an earlier checkpoint's
    found = find_results([pair[0], pair[1]])
    assert [path.name for path in found] == ["pets-cached", "pets-cached"]
    baseline = other(pair[0] / "eval" / "pets-cached-random")
    assert find_results([baseline, pair[0]])[1].name == "pets-cached"
    other(pair[1] / "eval" / "pets-logreg", protocol="logreg")
    with pytest.raises(DataError, match=r"has 2 results .*of which 2 are there for all"):
        find_results([pair[0], pair[1]])
    direct = [pair[0] / "eval" / "pets-logreg", pair[1] / "eval" / "pets-logreg" / "result.json"]
    assert [path.name for path in find_results(direct)] == ["pets-logreg"] * 2


@pytest.mark.parametrize("preset", ["recipe-2", "recipe-random"])
def test_a_preset_whose_name_ends_like_a_kept_result_stands_for_itself(
    tmp_path: Path, preset: str
) -> None:
    """Of one without the ending there are a baseline and an earlier result beside it."""
    for run in ("a", "b"):
        place = tmp_path / run / "eval"
        other(place / f"pets-{preset}", protocol=preset)
        other(place / "pets-recipe", protocol="recipe")
        other(place / "pets-recipe", protocol="recipe", step=200)
        assert read_result(place / "pets-recipe-1").protocol == "recipe"
    wanted = tmp_path / "a" / "eval" / f"pets-{preset}"
    assert find_results([wanted, tmp_path / "b"])[1].name == f"pets-{preset}"
    with pytest.raises(DataError, match=rf"2 results \(pets-recipe, pets-{preset}\)"):
        find_results([tmp_path / "a", tmp_path / "b"])


def test_a_damaged_result_beside_the_wanted_one_is_told(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old = other(pair[0] / "eval" / "pets-logreg", protocol="logreg")
    (old / "result.json").write_text("{")
    assert [path.name for path in find_results(pair)] == ["pets-cached"] * 2
    assert "left out of the comparison: " in capsys.readouterr().err
    (pair[0] / "eval" / "pets-cached" / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"neither .* that can be read: make one with"):
        find_results(pair)


def test_other_arguments_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give two or more"):
        compare(pair[:1])
    with pytest.raises(DataError, match="given twice"):
        compare([pair[0], pair[0]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="make lineval CKPT="):
        compare([pair[0], tmp_path / "empty"])
    with pytest.raises(DataError, match="does not exist"):
        compare([pair[0], tmp_path / "none"])


@pytest.mark.parametrize("ks", [[], ["5"]])
def test_results_without_the_headline_k_are_compared_without(
    pair: tuple[Path, Path], ks: list[str]
) -> None:
    assert "k-NN (k = 20)" in markdown(compare(pair))
    place = pair[1] / "eval" / "pets-cached"
    other(place, knn={k: read_result(place).knn["20"] for k in ks})
    text = markdown(compare(pair))
    assert "k-NN" not in text and "mean per class" in text


def test_curves_are_of_probes_and_of_results_of_several_steps(pair: tuple[Path, Path]) -> None:
    other(pair[0] / "eval" / "pets-cached-1", step=100, accuracy=0.3)
    other(pair[0] / "eval" / "pets-logreg", step=150, protocol="logreg")
    records = [{"step": 50, "loss": 1.0}, *({"step": s, "probe_knn": s / 10} for s in (50, 100))]
    lines = [*map(json.dumps, records), '{"step": 150, "probe_kn']
    (pair[0] / "metrics.jsonl").write_text("\n".join(lines))
    results, probes = find_curves(compare(pair))
    assert (results.name, [step for step, _ in results.points]) == ("base", [100, 200])
    assert probes.points == [(50, 5.0), (100, 10.0)]
    assert "Learning curves" in markdown(compare(pair), [results, probes])


def test_the_page_needs_no_other_file_and_names_cannot_break_it(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, pair), "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|<script|<link""", html)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 2
    assert all(base64.b64decode(each).startswith(b"\x89PNG") for each in pictures)
    assert "&lt;b&gt;" in html and "<b>" not in html.replace("<b>Not", "")
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert r"a\|b" in text and "better step 200" in text
    printed = capsys.readouterr().out
    assert re.search(r"better step 200 .*\+\d+\.\d\d \[\+", printed) and "report.html" in printed
