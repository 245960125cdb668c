"""Which commands `make evidence` runs, what it recognises as finished, and how it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harl_fast.errors import ConfigError, DataError, HarlError
from harl_fast.runfiles import RunFolder
from harl_fast.textfile import parse_yaml
from harl_fast.tools import evidence
from harl_fast.tools.evidence import (
    Evidence,
    EvidenceSettings,
    check_data,
    run_all,
    settle,
    time_left,
)
from harl_fast.tools.evidence_arms import Trial, chosen, load_plan
from harl_fast.tools.evidence_report import Findings, _basis
from tests.engine.tuning import write_sets

SHIPPED = Path(__file__).parents[2] / "experiments"
Make = Callable[..., Evidence]


class Programs:
    """Stand-ins for the programs that are run: they leave what the true ones leave."""

    def __init__(self, sets: Path) -> None:
        self.sets, self.commands, self.stops = sets, list[list[str]](), 0
        self.metrics = '{"step": 4, "img_s": 50.0, "probe_knn": 12.5}\n'

    def __call__(self, *words: str | Path) -> None:
        command = [str(word) for word in words]
        self.commands.append(command)

        def given(option: str) -> Path:
            return Path(command[command.index(option) + 1])

        if "preprocess.beton" in command:
            given("--out").mkdir(parents=True)
            for file in self.sets.iterdir():
                (given("--out") / file.name).write_bytes(file.read_bytes())
        elif "launch/pretrain.py" in command:
            run = RunFolder(given("--run"))
            run.path.mkdir(parents=True, exist_ok=True)
            run.config.touch()
            run.engine.write_text('{"train_batch_size": 4}')
            run.metrics.write_text(self.metrics)
            if self.stops:
                self.stops -= 1
                return
            run.finished.touch()
        elif "harl_fast.tools.evidence_scores" in command:
            given("--out").parent.mkdir(exist_ok=True)
            scores = {"accuracy": {"object": 50.0}, "weights_sha256": "0"}
            given("--out").write_text(json.dumps(scores))
        else:
            given("--out").parent.mkdir(parents=True, exist_ok=True)
            given("--out").touch()

    def of(self, program: str) -> list[list[str]]:
        return [command for command in self.commands if program in command]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("evidence") / "sets", train=8, val=4)


@pytest.fixture
def programs(sets: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs(sets)
    monkeypatch.setattr(evidence, "run", found)
    monkeypatch.setattr(evidence, "holds", lambda folder, _: (folder / "val.json").exists())
    return found


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(**settings: Any) -> Evidence:
        (tmp_path / "photos" / "train").mkdir(parents=True, exist_ok=True)
        given = {"precision": "fp32", "photos": str(tmp_path / "photos"), **settings}
        return Evidence(tmp_path / "out", EvidenceSettings(**given))

    return made


def trials(*only: str, **options: Any) -> list[Trial]:
    return chosen(load_plan(SHIPPED, **{"quick": True, "seeds": 1, **options}).trials, only)


def test_what_is_finished_is_not_run_again(programs: Programs, make: Make) -> None:
    both, calls = trials("composites/random", "composites/exact"), []
    run_all(make(), both, after=lambda: calls.append(1))
    assert len(calls) == 2 and len(programs.of("launch/pretrain.py")) == 1
    assert len(make().finished(both)) == 2 and not programs.of("preprocess.balanced")
    result = make().finished(both)[both[1]]
    assert result["images_seen"] == 16 and result["seconds"] == pytest.approx(16 / 50)
    assert result["curve"] == [[4, 12.5]] and result["counts"] == {"train": 8, "val": 4}
    before = len(programs.commands)
    run_all(make(), both, after=lambda: calls.append(1))
    assert len(programs.commands) == before and len(calls) == 2


def test_a_training_counts_without_its_log(programs: Programs, make: Make) -> None:
    """A full disk takes metrics.jsonl alone: training goes on without it."""
    (trial,) = trials("composites/exact")
    programs.metrics = ""
    run_all(make(), [trial], after=lambda: None)
    result = make().finished([trial])[trial]
    assert result["images_seen"] == 16 and result["curve"] == [] and result["seconds"] is None
    assert time_left([trial], make().finished([trial])) == ""
    found = Findings("composites", trial.suite, {trial.name: {0: dict(result)}})
    assert "16 images in a training; 0s of training" in _basis({"composites": found})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda text: text[:50], "not valid JSON"),
        (lambda text: text.replace('"accuracy"', '"accurate"'), "accuracy: Field required"),
        (lambda text: text.replace("50.0", '"much"'), "accuracy.object: .*got 'much'"),
    ],
)
def test_a_damaged_result_is_named(
    harm: Callable[[str], str], message: str, programs: Programs, make: Make
) -> None:
    (trial,) = trials("composites/random")
    run_all(make(), [trial], after=lambda: None)
    (path,) = (make().out / "results").iterdir()
    path.write_text(harm(path.read_text()))
    with pytest.raises(DataError, match=rf"{path}: {message}.*Delete it, and its trial is judged"):
        make().finished([trial])


@pytest.mark.parametrize("engine", ["{}", '{"train_batch_size": "8"}', '{"train_batch_size": 0}'])
def test_a_run_whose_engine_file_was_edited_is_named(
    engine: str, programs: Programs, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = trials("composites/exact")
    train = Evidence._train

    def edited(self: Evidence, trial: Trial) -> Path:
        folder = train(self, trial)
        (folder / "engine.json").write_text(engine)
        return folder

    monkeypatch.setattr(Evidence, "_train", edited)
    with pytest.raises(
        DataError, match=r"engine\.json: train_batch_size: .*Delete .*trained again"
    ):
        run_all(make(), [trial], after=lambda: None)


@pytest.mark.parametrize("log", ['{"img_s": 0}', '{"img_s": NaN}', '{"step": 4, "probe_knn": NaN}'])
def test_what_no_training_logs_is_left_out(log: str, programs: Programs, make: Make) -> None:
    (trial,) = trials("composites/exact")
    programs.metrics = f"{log}\n"
    run_all(make(), [trial], after=lambda: None)
    result = make().finished([trial])[trial]
    assert result["seconds"] is None and result["curve"] == []


def test_folders_of_any_name_reach_the_mask_method(programs: Programs, tmp_path: Path) -> None:
    out = tmp_path / 'a, "b" #1: {x}' / "out"
    settings = EvidenceSettings(precision="fp32", photos=str(tmp_path))
    named = trials("composites/exact", "photos/selftrained", quick=False)
    run_all(Evidence(out, settings), named, after=lambda: None)
    commands = [c for c in programs.of("preprocess.beton") if "--mask-method" in c]
    methods = [command[command.index("--mask-method") + 1] for command in commands]
    given = [parse_yaml(each, where="") for each in methods if each.startswith("{")]
    paths = [Path(path) for method in given for path in method.values()]
    assert {path.suffix or path.name for path in paths} == {"masks", ".safetensors"}
    assert all(path.is_relative_to(out) for path in paths)


def test_photos_that_change_between_arms_are_refused(
    programs: Programs, make: Make, tmp_path: Path
) -> None:
    random, byol = trials("photos/random", "photos/byol", quick=False)
    run_all(make(), [random], after=lambda: None)
    before, programs.sets = programs.sets, write_sets(tmp_path / "changed", train=8, val=5)
    with pytest.raises(DataError, match=r"photos-full.* was made of other val photos .*--out"):
        make().run(byol)
    assert not programs.of("launch/pretrain.py")
    shutil.rmtree(next((make().out / "data").glob("photos-full-*")))
    programs.sets = before
    make().run(byol)


@pytest.mark.parametrize("what", ["seed", "override", "masks", "epochs", "precision", "probes"])
def test_a_result_of_anything_else_does_not_count(
    what: str, programs: Programs, make: Make
) -> None:
    (trial,) = trials("composites/exact")
    run_all(make(), [trial], after=lambda: None)
    (other,) = trials("composites/exact", epochs=3 if what == "epochs" else None)
    kept = {"precision": "bf16"} if what == "precision" else {}
    if what == "seed":
        other = trials("composites/exact", seeds=2)[1]
    if what == "override":
        config = other.config.model_copy(update={"seed": 5})
        other = replace(other, config=config)
    if what == "masks":
        other = replace(other, arm=other.arm.model_copy(update={"masks": "center"}))
    if what == "probes":
        other = replace(other, suite=other.suite.model_copy(update={"probes": {"x": "center"}}))
    assert make().finished(trials("composites/exact"))
    assert not make(**kept).finished([other])


def test_random_weights_do_not_depend_on_the_length_of_trainings(
    programs: Programs, make: Make
) -> None:
    run_all(make(), trials("composites/random"), after=lambda: None)
    assert make(precision="bf16").finished(trials("composites/random", epochs=9))


def test_an_interrupted_training_goes_on_from_its_checkpoint(
    programs: Programs, make: Make
) -> None:
    (trial,) = trials("composites/exact")
    programs.stops = 1
    with pytest.raises(HarlError, match="the same command goes on"):
        make().run(trial)
    (first,) = programs.of("launch/pretrain.py")
    assert "--resume" not in first and ["--config", "demo"] == [
        first[first.index("--config") + place] for place in (0, 1)
    ]
    folder = Path(first[first.index("--run") + 1])
    make().run(trial)  # nothing was saved: it starts anew
    assert programs.of("launch/pretrain.py")[1] == first
    RunFolder(folder).finished.unlink()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000001.json").touch()
    make().run(trial)
    last = programs.of("launch/pretrain.py")[2]
    assert "--resume" in last and "--config" not in last and str(folder) in last
    make().run(trial)
    assert len(programs.of("launch/pretrain.py")) == 3
    assert len(programs.of("preprocess.beton")) == 2  # the set as drawn, and with the arm's masks


def test_arms_of_one_mask_method_share_their_containers(programs: Programs, make: Make) -> None:
    names = ("selftrained", "swap-selftrained", "byol", "full", "random")
    run_all(make(), trials(*(f"photos/{n}" for n in names), quick=False), after=lambda: None)
    methods = [c[c.index("--mask-method") + 1] for c in programs.of("preprocess.beton")]
    assert len(methods) == len(set(methods)) == 3  # heuristic, of the network, full
    (network,) = programs.of("preprocess.masks.selftrained.train")
    weights = network[network.index("--out") + 1]
    assert f'{{selftrained: "{weights}"}}' in methods
    runs = programs.of("launch/pretrain.py")
    assert len(runs) == 4
    folders = [command[command.index("--data") + 1] for command in runs]
    assert len(set(folders)) == 2


def test_pictures_are_altered_by_other_masks_than_the_arm_s(programs: Programs, make: Make) -> None:
    names = ("byol", "heuristic", "shuffled", "random")
    expected = {
        "byol": {"heuristic", "selftrained"},
        "random": {"heuristic", "selftrained"},
        "heuristic": {"selftrained"},
        "shuffled": {"heuristic"},  # other pictures' masks, of the network
    }
    run_all(make(), trials(*(f"photos/{n}" for n in names), quick=False), after=lambda: None)
    for command in programs.of("harl_fast.tools.evidence_scores"):
        name = Path(command[command.index("--out") + 1]).stem.split("-")[1]
        probes = {command[i + 1] for i, word in enumerate(command) if word == "--probe"}
        assert probes == expected[name]
        if name == "random":
            assert "--config" in command and "--ckpt" not in command


def test_quick_photos_are_a_part_of_the_photos(programs: Programs, make: Make) -> None:
    run_all(make(), trials("photos/byol"), after=lambda: None)
    (listing,) = programs.of("preprocess.balanced")
    assert listing[listing.index("--count") + 1] == str(trials("photos/byol")[0].images)
    listed = listing[listing.index("--out") + 1]
    for command in programs.of("preprocess.beton"):
        assert command[command.index("--data") + 1] == listed


def test_all_trials_of_a_folder_share_the_first_precision_and_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "cpu", lambda: ("", {"avx512_bf16"}))
    assert settle(tmp_path, photos=None) == EvidenceSettings(precision="bf16", photos=None)
    monkeypatch.setattr(evidence, "cpu", lambda: ("", {"avx2"}))
    photos = tmp_path / "photos"
    found = settle(tmp_path, photos=photos)
    assert found == EvidenceSettings(precision="bf16", photos=str(photos))
    assert settle(tmp_path, photos=None) == found
    other = settle(tmp_path, photos=tmp_path / "mistyped")  # nothing was made of the first
    assert other.photos == str(tmp_path / "mistyped") and settle(tmp_path, photos=photos) == found
    (tmp_path / "data" / "photos-full-0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"other.*give another --out"):
        settle(tmp_path, photos=tmp_path / "other")
    assert settle(tmp_path / "new", photos=None).precision == "fp32"
    (tmp_path / "settings.json").write_text('{"precision": "fp8", "photos": null}')
    with pytest.raises(DataError, match=r"settings\.json.*precision"):
        settle(tmp_path, photos=None)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_trainings_compute_in_the_folder_s_precision(
    precision: str, programs: Programs, make: Make
) -> None:
    run_all(make(precision=precision), trials("composites/exact"), after=lambda: None)
    (command,) = programs.of("launch/pretrain.py")
    assert ("bf16.enabled=true" in command) == (precision == "bf16")


def test_photos_as_containers_are_refused(tmp_path: Path) -> None:
    check_data(None)
    with pytest.raises(ConfigError, match="is not there"):
        check_data(tmp_path / "x")
    (tmp_path / "train.json").touch()
    with pytest.raises(ConfigError, match="holds containers"):
        check_data(tmp_path)


def test_the_time_left_is_of_trainings_of_the_same_suite() -> None:
    first, second, photo, untrained = (
        trials(name)[0]
        for name in ("composites/byol", "composites/exact", "photos/byol", "photos/random")
    )
    assert time_left([first], {}) == ""
    done = {first: {"seconds": 600.0}, second: {"seconds": None}, untrained: {}}
    assert time_left([second, untrained], done).startswith("; about 10m")
    assert time_left([second, photo], done).startswith("; over 10m")
    assert time_left([photo], done) == ""
