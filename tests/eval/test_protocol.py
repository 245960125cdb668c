"""The whole evaluation on real containers, and the program around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harl_fast.config import load_config
from harl_fast.data.manifest import read_manifest, write_manifest
from harl_fast.engine.checkpoint import random_encoder, write_checkpoint
from harl_fast.errors import DataError
from harl_fast.eval.protocol import Evaluator, table
from launch import lineval
from tests.betons import Item, write_beton

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
    text = table({"pretrained": result}, chance=evaluator.chance())
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


def test_splits_with_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    val = read_manifest(tmp_path / "val.beton")
    val.classes[1] = "wombat"
    write_manifest(tmp_path / "val.beton", val)
    with pytest.raises(DataError, match="differ in class1, wombat"):
        Evaluator(tmp_path, size_px=24, mean=MEAN, std=STD, device=torch.device("cpu"))


def test_the_program_judges_a_checkpoint_beside_a_random_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model.arch=resnet18", "model.width=0.125", "model.stem=small"]
    sizes = [f"data.views.{view}.size_px=16" for view in (0, 1)]
    config = load_config("demo", overrides=[*small, *sizes])
    encoder = random_encoder(config, seed=5)
    write_checkpoint(
        tmp_path / "run" / "checkpoints",
        tensors={f"online.backbone.{k}": v for k, v in encoder.state_dict().items()},
        record={
            "step": 1, "epoch": 1, "epoch_step": 0, "config": config, "engine": {}, "data": {}
        },
    )  # fmt: skip
    arguments = ["--ckpt", str(tmp_path / "run"), "--data", str(folder), "--epochs", "3"]
    assert lineval.main([*arguments, "--random", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "run" / "lineval.json"
    assert f"result: {out}" in printed
    results = json.loads(out.read_text())
    assert list(results) == ["pretrained", "random"]
    for name in results:
        metrics = results[name]["linear"]["metrics"]
        assert metrics["count"] == 40
        assert f"{metrics['top1']:.2f}" in printed
    assert results["pretrained"]["linear"]["trials"] != results["random"]["linear"]["trials"]
