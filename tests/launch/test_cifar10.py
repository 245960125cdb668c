"""`make cifar10` on generated images: containers, a run, results beside a random encoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.container.names import check_source, read_names
from harl_fast.errors import DataError, OutputError
from harl_fast.eval.results import read_result
from launch import cifar10
from launch.cifar10 import convert, main
from tests.engine.tuning import write_sets
from tests.launch.jobs import LONG_S, run

SCRIPT = Path("launch/cifar10.py")


def images(folder: Path) -> Path:
    """Write 32 px pictures of a dark and a light class; more than are asked for."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 9)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (32, 32, 3)) + 120 * label
                picture = Image.fromarray(pixels.astype(np.uint8))
                picture.save(folder / split / name / f"{number:04d}.png")
    return folder


@pytest.mark.parametrize(
    ("options", "augmented"),
    [([], True), (["--images", "84"], False), (["--images", "84", "--augmented"], True)],
)
def test_heads_on_random_crops_are_trained_beside_a_random_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], augmented: bool
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(cifar10, "run", lambda *words: commands.append(tuple(map(str, words))))
    monkeypatch.setattr(cifar10, "convert", lambda *_: None)
    (tmp_path / "set").mkdir()
    places = ["--data", str(tmp_path / "set"), "--out", str(tmp_path / "c10")]
    assert cifar10.main([*places, "--run", str(tmp_path / "run"), *options]) == 0
    assert any("launch/lineval.py" in words and "--random" in words for words in commands)
    heads = [words for words in commands if "launch/finetune.py" in words]
    assert ["--random" in words for words in heads] == ([False, True] if augmented else [])
    folders = {words[words.index("--run") + 1] for words in heads}
    assert len(folders) == len(heads) and str(tmp_path / "run") not in folders
    for words in heads:
        assert words[words.index("--preset") + 1] == "seed-linear-cifar10"
        assert words[words.index("--ckpt") + 1] == str(tmp_path / "run")


@pytest.mark.slow
def test_it_goes_from_images_to_results(tmp_path: Path) -> None:
    places = ["--out", tmp_path / "c10", "--run", tmp_path / "run"]
    command = [sys.executable, SCRIPT, "--data", images(tmp_path / "set"), *places]
    command += ["--images", "84", "--epochs", "1"]
    for _ in range(2):  # again in the same places: the containers stay, the run is replaced
        job = run(command, log=tmp_path / "log", limit_s=LONG_S)
        assert job.code == 0, job.text
    assert "preprocess.beton" not in job.text and "took" in job.text
    facts = {s: read_manifest(tmp_path / "c10-84" / f"{s}.beton") for s in ("train", "val")}
    assert {split: each.class_counts for split, each in facts.items()} == {
        "train": [35, 35],
        "val": [7, 7],
    }
    assert facts["train"].mask["method"] == "enlarged"
    config = json.loads((tmp_path / "run" / "engine.json").read_text())
    assert config["train_batch_size"] == 64
    results = {path.name: read_result(path) for path in (tmp_path / "run" / "eval").iterdir()}
    assert sorted(results) == ["c10-84-cached", "c10-84-cached-random"]
    for result in results.values():
        assert result.preprocessing["size_px"] == 32 and result.preprocessing["crop"] == 1.0
        assert "20" in result.knn and result.headline == "top1"


def test_a_folder_of_another_layout_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    places = ["--out", tmp_path / "c10", "--run", tmp_path / "run", "--images", "100"]
    job = run(
        [sys.executable, SCRIPT, "--data", tmp_path, *places],
        log=tmp_path.with_suffix(".log"), limit_s=LONG_S,
    )  # fmt: skip
    assert job.code == 2 and "expected FOLDER/train/<class>" in job.text
    assert list(tmp_path.iterdir()) == []


def test_containers_of_other_images_are_not_taken_for_these(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "kept", train=8, val=4)
    kept = read_manifest(sets / "train.beton").source
    convert(tmp_path / kept, sets, None)
    for data, images in (("others", None), (kept, 84)):
        with pytest.raises(DataError, match=f"holds containers of '{kept}', not of '.*: delete"):
            convert(tmp_path / data, sets, images)


def test_a_folder_of_the_same_name_elsewhere_is_another(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "kept", train=8, val=4)
    source = read_manifest(sets / "train.beton").source
    first, second = tmp_path / "a" / source, tmp_path / "b" / source
    image = first / read_names(sets / "train.beton")[3]
    image.parent.mkdir(parents=True)
    image.touch()
    second.mkdir(parents=True)
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,label,split\n{image},0,train\n")
    check_source(sets, source, data=first)
    check_source(sets, source, data=first, listed=listed)
    for each in (None, listed):
        with pytest.raises(DataError, match=r"of another folder '.*', none of whose images"):
            check_source(sets, source, data=second, listed=each)
    second.rmdir()  # images may go when they are converted
    check_source(sets, source, data=second)


def test_images_within_the_run_folder_do_not_go_with_it(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    kept = images(run_folder / "photos")
    for name in ("config.yaml", "engine.json"):
        (run_folder / name).touch()
    with pytest.raises(OutputError, match=r"photos lies in the run folder .*run, which is to be"):
        main(["--data", str(kept), "--out", str(tmp_path / "set"), "--run", str(run_folder)])
    assert kept.is_dir() and not (tmp_path / "set").exists()


@pytest.mark.parametrize("out", [".", "/"])
def test_the_current_folder_is_no_place_for_containers(out: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is the folder that this runs in, or one above"):
        main(["--data", str(tmp_path), "--out", out])
