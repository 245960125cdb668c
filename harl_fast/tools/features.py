"""Features of a result's checkpoint, extracted again as the evaluation did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harl_fast.data.container.manifest import find_container, read_manifest
from harl_fast.data.loader import EvalLoader
from harl_fast.data.views.color_device import Photometric
from harl_fast.engine.networks import Pretrained, load_pretrained
from harl_fast.errors import CheckpointError, DataError
from harl_fast.eval.features import FeatureSet, extract
from harl_fast.eval.results import Result


def check_containers(folder: Path, data: Mapping[str, Any]) -> None:
    """Raise DataError unless a folder holds the containers that a result's ``data`` describes."""
    for split in ("train", "val"):
        path, wanted = find_container(folder, split), str(data.get(f"{split}_sha256"))
        found = read_manifest(path).beton_sha256
        if found != wanted:
            raise DataError(
                f"{path} has the SHA-256 {found[:12]}..., the result is of {wanted[:12]}...: give "
                f"the folder that it was made on"
            )


def validation_features(result: Result, data: Path) -> npt.NDArray[np.float32]:
    """Return the (N, D) features of the validation container's samples, by id.

    Raises CheckpointError if the checkpoint is gone or another one by now.
    """
    seen = result.preprocessing
    pretrained = load_pretrained(
        Path(result.checkpoint["path"]),
        mean=seen["mean"],
        std=seen["std"],
        size_px=seen["size_px"],
    )
    if pretrained.weights_sha256 != result.checkpoint["weights_sha256"]:
        raise CheckpointError(
            f"{pretrained.source} is not the checkpoint that the result is of (weights "
            f"{pretrained.weights_sha256[:12]}..., not "
            f"{str(result.checkpoint['weights_sha256'])[:12]}...): evaluate it again"
        )
    return features_of(pretrained, data, "val").features.numpy()


def features_of(pretrained: Pretrained, data: Path, split: str) -> FeatureSet:
    """Return the features of one split of a folder's containers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = pretrained.mean, pretrained.std
    loader = EvalLoader(find_container(data, split), size_px=pretrained.size_px, channels=len(mean))
    try:
        return extract(
            pretrained.backbone.to(device),
            loader,
            prepare=Photometric((), mean=mean, std=std, seed=0).to(device).plain,
            device=device,
            label=f"{split} features",
        )
    finally:
        loader.close()
