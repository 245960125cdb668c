"""Features of a result's checkpoint: those that the evaluation kept, else extracted as it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harl_fast.data.container.manifest import find_container, read_manifest
from harl_fast.engine.lineval import half
from harl_fast.engine.networks import Pretrained, load_pretrained, random_like
from harl_fast.errors import CheckpointError, DataError
from harl_fast.eval.cache import FeatureCache
from harl_fast.eval.features import FeatureSet
from harl_fast.eval.protocol import Evaluator
from harl_fast.eval.results import RESULT, Result
from harl_fast.runfiles import RunFolder, home
from harl_fast.tools.comparison import freshly_initialised


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


def run_of(place: Path) -> Path | None:
    """Return the run that a result ``RUN/eval/NAME``, or the file in it, belongs to, if any."""
    folder = place.resolve()
    folder = folder.parent if folder.name == RESULT else folder
    run = folder.parent.parent
    return run if folder.parent.name == "eval" and (run / "checkpoints").is_dir() else None


def validation_features(
    result: Result, data: Path, place: Path | None = None
) -> npt.NDArray[np.float32]:
    """Return the (N, D) features of the validation container's samples, by id.

    place: the result's folder, or the file in it; of a run that was moved with it, the checkpoint
    is found. Raises CheckpointError if the checkpoint is gone or another one by now.
    """
    ckpt = Path(result.checkpoint["path"])
    run = None if place is None else run_of(place)
    if run is not None and not ckpt.exists():
        ckpt = RunFolder(run).checkpoints / ckpt.name
    pretrained = load_like(ckpt, result)
    if freshly_initialised(result):
        pretrained = random_like(pretrained, seed=result.seed)
    wanted = str(result.checkpoint["weights_sha256"])
    if pretrained.weights_sha256 != wanted:
        raise CheckpointError(
            f"{pretrained.source} is not what the result is of (weights "
            f"{pretrained.weights_sha256[:12]}..., not {wanted[:12]}...): evaluate it again"
        )
    (found,) = features_of(pretrained, result, data, ("val",))
    features: npt.NDArray[np.float32] = found.features.numpy()
    return features


def load_like(ckpt: Path, result: Result) -> Pretrained:
    """Return a checkpoint with the preprocessing that a result had."""
    seen = result.preprocessing
    return load_pretrained(ckpt, mean=seen["mean"], std=seen["std"], size_px=seen["size_px"])


def features_of(
    pretrained: Pretrained, like: Result, data: Path, splits: Sequence[str]
) -> list[FeatureSet]:
    """Return the features of splits of a folder's containers, seen as a result's were.

    They are taken from ``features/`` beside the checkpoint if they are there, else kept there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluator = Evaluator(
        data,
        size_px=pretrained.size_px,
        mean=pretrained.mean,
        std=pretrained.std,
        crop=like.preprocessing["crop"],
        device=device,
        cache=FeatureCache(home(pretrained.source) / "features"),
    )
    encoder = pretrained.backbone.to(device)
    label = "random" if pretrained.receipt.matched == 0 else "pretrained"
    return [
        evaluator.features(
            encoder, split, autocast=half(), label=label, weights=pretrained.weights_sha256
        )
        for split in splits
    ]
