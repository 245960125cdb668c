"""The whole evaluation on real containers, and the program around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harl_fast import __version__
from harl_fast.config import load_config
from harl_fast.data.container.manifest import read_manifest, write_manifest
from harl_fast.engine.checkpoint.format import write_checkpoint
from harl_fast.engine.networks import random_encoder
from harl_fast.errors import DataError, OutputError
from harl_fast.eval.protocol import Evaluator, table
from launch import lineval
from tests.betons import Item, write_beton
from tests.tools.results import make_result

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COUNTS = {"train": 90, "val": 40}


def coloured(index: int) -> Item:
    """Return a picture whose class, one of three, is the channel that is brightest."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
    # Uneven classes, and a tenth of the pictures that nothing could classify.
    label = min(2, index % 5)
    if index % 10:
        image[..., label] += 100
    return image, np.ones((64, 64), np.bool_), label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coloured")
    for number, (split, count) in enumerate(COUNTS.items()):
        write_beton(
            path / f"{split}.beton", lambda i, n=number: coloured(i + 1000 * n), count=count
        )
    return path


class MeanColour(nn.Module):
    """An encoder whose features are what it is given, and whose input is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    return Evaluator(
        folder, size_px=24, mean=MEAN, std=STD, device=torch.device("cpu"), batch=32, workers=1
    )


def test_a_separable_set_is_separated_and_the_numbers_fit_the_containers(
    evaluator: Evaluator,
) -> None:
    encoder = MeanColour()
    result = evaluator(encoder, epochs=40)
    # Nine in ten can be told apart; the others are of the largest class, so 90 is a floor.
    assert result.linear.metrics.top1 >= 90
    assert result.knn.top1 >= 90
    assert (result.train_count, result.linear.metrics.count) == (90, 40)
    assert (result.knn.count, result.feature_dim) == (40, 3)
    assert [x.shape for x in encoder.seen[:3]] == [
        (32, 3, 24, 24),
        (32, 3, 24, 24),
        (26, 3, 24, 24),
    ]
    text = table({"pretrained": result}, chance=evaluator.chance(), classes=3)
    assert f"{result.linear.metrics.mean_per_class:.2f}" in text
    assert "40 validation and 90 training images, 3 features" in text


def test_the_encoder_sees_the_pretrainings_normalisation(evaluator: Evaluator) -> None:
    encoder = MeanColour()
    evaluator(encoder, epochs=1)
    pixels = torch.cat(encoder.seen) * torch.tensor(STD)[:, None, None]
    pixels += torch.tensor(MEAN)[:, None, None]
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    # Noise of 0 to 119, and 100 more on the label's channel of nine pictures in ten.
    assert float(pixels.mean()) == pytest.approx((59.5 + 30) / 255, abs=0.02)


def test_chance_is_the_share_of_the_largest_training_class(evaluator: Evaluator) -> None:
    assert evaluator.chance() == pytest.approx(60.0)  # labels 0, 1, 2, 2, 2


def test_names_are_those_of_the_containers_that_were_opened(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reading = {"size_px": 24, "mean": MEAN, "std": STD, "device": torch.device("cpu")}
    opened = Evaluator(tmp_path, subset="50%", **reading)
    names = {split: opened.names(split) for split in COUNTS}
    for number, (split, count) in enumerate(COUNTS.items()):
        write_beton(
            tmp_path / f"{split}.beton", lambda i, n=number: coloured(i + n), count=count + 9
        )
    assert {split: opened.names(split) for split in COUNTS} == names
    assert {split: len(found) for split, found in names.items()} == COUNTS


def test_splits_with_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    val = read_manifest(tmp_path / "val.beton")
    val.classes[1] = "wombat"
    write_manifest(tmp_path / "val.beton", val)
    with pytest.raises(DataError, match="differ in 'class1', 'wombat'"):
        Evaluator(tmp_path, size_px=24, mean=MEAN, std=STD, device=torch.device("cpu"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint of a small network."""
    small = ["model.arch=resnet18", "model.width=0.125", "model.stem=small"]
    sizes = [f"data.views.{view}.size_px=16" for view in (0, 1)]
    config = load_config("small", overrides=[*small, *sizes])
    encoder = random_encoder(config, seed=5)
    write_checkpoint(
        tmp_path / "run" / "checkpoints",
        tensors={f"online.backbone.{k}": v for k, v in encoder.state_dict().items()},
        record={
            "step": 1, "epoch": 1, "epoch_step": 0, "config": config, "engine": {}, "data": {}
        },
    )  # fmt: skip
    return tmp_path / "run"


def test_the_program_judges_a_checkpoint_beside_a_random_encoder(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ckpt", str(run), "--data", str(folder), "--epochs", "3"]
    assert lineval.main([*arguments, "--random", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    out = run / "lineval.json"
    assert f"result: {out}" in printed
    results = json.loads(out.read_text())
    assert list(results) == ["name", "time", "provenance", "pretrained", "random"]
    for name in ("pretrained", "random"):
        metrics = results[name]["linear"]["metrics"]
        assert metrics["count"] == 40
        assert f"{metrics['top1']:.2f}" in printed
    assert results["pretrained"]["linear"]["trials"] != results["random"]["linear"]["trials"]


def test_a_result_names_data_checkpoint_settings_and_code(folder: Path, run: Path) -> None:
    options = ["--epochs", "2", "--seed", "3", "--workers", "1"]
    assert lineval.main(["--ckpt", str(run), "--data", str(folder), *options]) == 0
    result = json.loads((run / "lineval.json").read_text())
    made = result["provenance"]
    assert result["name"] == f"{folder.name}-step-00000001"
    assert made["data"] == {
        "folder": str(folder),
        **{s: read_manifest(folder / f"{s}.beton").beton_sha256 for s in ("train", "val")},
    }
    assert made["checkpoint"]["file"] == str(run / "checkpoints" / "step-00000001.safetensors")
    assert made["checkpoint"]["step"] == 1
    settings = made["settings"]
    assert (settings["epochs"], settings["seed"], settings["size_px"]) == (2, 3, 16)
    assert made["code"].startswith(__version__)


def test_results_on_several_sets_all_stay(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other_set"
    other.mkdir()
    for number, (split, count) in enumerate(COUNTS.items()):
        write_beton(other / f"{split}.beton", lambda i, n=number: coloured(i + 99 * n), count=count)
    for data in (folder, other, other):
        options = ["--epochs", "1", "--workers", "1"]
        assert lineval.main(["--ckpt", str(run), "--data", str(data), *options]) == 0
    kept = f"lineval-{folder.name}-step-00000001.json"
    assert sorted(path.name for path in run.glob("*.json")) == [kept, "lineval.json"]
    assert json.loads((run / kept).read_text())["provenance"]["data"]["folder"] == str(folder)
    newest = json.loads((run / "lineval.json").read_text())
    assert newest["provenance"]["data"]["folder"] == str(other)
    assert capsys.readouterr().out.count("was of other data; kept as") == 1


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/out.json", "cannot be written: "),
        (f"{'x' * 300}.json", "cannot be written: "),
        ("/proc/none/out.json", "cannot be written: "),
        ("eval/set-cached/result.json", "of results alone"),
        ("other/eval/set-cached/mine.json", "lies in the folder of a result"),
        ("features/train.safetensors", r"would hold a \.json"),
    ],
)
def test_an_output_that_cannot_stand_there_is_refused_before_the_work(
    folder: Path, run: Path, place: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("the work began before the output was checked")

    (run / "file").touch()
    make_result(run / "other" / "eval" / "set-cached", accuracy=0.5)
    monkeypatch.setattr("harl_fast.engine.lineval.Evaluator", no_work)
    monkeypatch.setattr("harl_fast.engine.lineval.load_pretrained", no_work)
    with pytest.raises(OutputError, match=rf"^--out .*{said}"):
        lineval.main(["--ckpt", str(run), "--data", str(folder), "--out", str(run / place)])
