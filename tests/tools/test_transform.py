"""The preprocessing that an exported folder states: timm does what evaluation does here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from harl_fast.data.loader import EvalLoader
from harl_fast.engine.networks import load_pretrained
from harl_fast.tools.export import export_encoder
from preprocess import beton
from tests.engine.saved import checkpoint

COUNT = 1000
"""Photos: a head is trained on every other one and judged on the rest."""


@pytest.mark.slow
def test_timms_transform_gives_nearly_our_features(real_images: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    (tmp_path / "photos").mkdir()
    every = sorted((real_images / "train").rglob("*.jpg"))
    labels = []
    for number, path in enumerate(every[:: max(1, len(every) // COUNT)][:COUNT]):
        (tmp_path / "photos" / f"{number:04}.jpg").symlink_to(path.resolve())
        labels.append(path.parent.name)
    given = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "data")]
    assert beton.main([*given, "--mask-method", "full", "--store", "passthrough"]) == 0
    checkpoint(tmp_path / "run", arch="resnet18")
    export_encoder(tmp_path / "run", tmp_path / "out", size_px=96)
    ours = _ours(tmp_path / "data" / "train.beton", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    stated = timm.data.resolve_data_config({}, model=model)
    names = (tmp_path / "data" / "train.names.txt").read_text().split()
    photos = [tmp_path / "photos" / name for name in names]
    theirs = _theirs(model, timm.data.create_transform(**stated), photos)
    whole = timm.data.create_transform(**{**stated, "crop_pct": 1.0})
    control = _theirs(model, whole, photos[:100])

    plain = functional.cosine_similarity(ours, theirs).median()
    # Features of random weights all point one way: what photos differ by says more.
    centre = ours.mean(0)
    alike = functional.cosine_similarity(ours - centre, theirs - centre).median()
    other = functional.cosine_similarity(ours[:100] - centre, control - centre).median()
    kinds = np.asarray([labels[int(Path(name).stem)] for name in names])
    right = [_predicted(kinds, ours, each) == kinds[1::2] for each in (ours, theirs)]
    here, there = (each.mean() for each in right)
    moved = (right[0] != right[1]).sum() ** 0.5 / len(right[0])
    print(f"{len(photos)} photos: {plain:.4f}, centred {alike:.4f}, another crop {other:.4f}")
    print(f"a head on our features: {here:.2%} on ours, {there:.2%} on timm's, error {moved:.2%}")
    assert len(photos) > 300 and plain >= 0.99 and alike >= 0.97 and other < alike - 0.02
    # Within a point, beyond what single photos on the border between two classes add by chance.
    assert abs(here - there) <= 0.01 + 2 * moved and here > 5 / len(set(kinds))


def _predicted(labels: np.ndarray, ours: Tensor, features: Tensor) -> np.ndarray:
    """Return what a head learned on our features of even photos says of the odd ones' features."""
    linear = pytest.importorskip("sklearn.linear_model")
    scale = pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(ours[::2])
    head = linear.LogisticRegression(C=0.01, max_iter=500)
    head.fit(scale.transform(ours[::2]), labels[::2])
    predicted: np.ndarray = head.predict(scale.transform(features[1::2]))
    return predicted


def _theirs(model: nn.Module, transform: Callable[..., Tensor], photos: list[Path]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(transform(_open(photo))[None]) for photo in photos])


def _ours(container: Path, exported: Path) -> Tensor:
    """Return the (N, D) features that evaluation computes."""
    pretrained = load_pretrained(exported)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (pretrained.mean, pretrained.std))
    loader = EvalLoader(container, size_px=pretrained.size_px, batch=50, workers=1)
    rows = []
    with torch.inference_mode():
        for batch in loader:
            pixels = batch.views[0].permute(0, 3, 1, 2).float() / 255
            rows.append(pretrained.backbone((pixels - mean) / std).mean((2, 3)))
    return torch.cat(rows)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
