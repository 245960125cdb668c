"""The folder of an exported encoder: what lies in it, and how it is read.

``config.json`` in timm's schema with a section ``harl_fast`` of ours; ``model.safetensors`` under
the names of torchvision or timm, with the classifier if there is one; ``projector.safetensors``.
Hugging Face's hub and ``timm.create_model("local-dir:FOLDER", pretrained=True)`` take it as it is.
Reading needs torch alone, so that `hubconf.py` works where little is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harl_fast.config import LUMA_MEAN, LUMA_STD, RGB_MEAN, RGB_STD, DataConfig, ModelConfig
from harl_fast.errors import CheckpointError
from harl_fast.files import sha256_file
from harl_fast.model.backbone import Backbone
from harl_fast.model.backbones import build_backbone
from harl_fast.model.heads import LinearHeads, MLPHead
from harl_fast.model.names import build_projector, listed
from harl_fast.model.resnet import ARCHS
from harl_fast.model.seeding import own_numbers
from harl_fast.model.timm_network import PREFIX
from harl_fast.model.weightfile import read_weights
from harl_fast.runfiles import EXPORT_FILES, holds
from harl_fast.textfile import read_json

CONFIG, WEIGHTS, PROJECTOR, CARD = EXPORT_FILES
FORMAT = 1
MOST_BYTES = 1 << 24
"""Largest config.json: it can hold the names of thousands of classes."""


_STATED = {"mean": "mean", "std": "std", "size_px": "input_size"}
"""What config.json calls them."""


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds."""

    model: ModelConfig
    backbone: Backbone
    """In eval mode."""
    projector: MLPHead | None
    head: LinearHeads | None
    """One linear classifier of the pooled features."""
    classes: list[str]
    """The classifier's, in its order."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size_px: int
    crop: float | None
    """Share of the shorter side that it is judged on; None where that is not stated."""
    assumed: tuple[str, ...]
    """Which of mean, std and size_px are not stated."""
    source: str
    """Where the weights are from: a run and its step."""
    matched: int
    """Tensors of the backbone; all of them."""
    weights_sha256: str
    """The backbone's when it was exported; empty of folders that timm wrote."""


def folder_of(path: Path) -> Path | None:
    """Return the exported folder, ours or timm's own, that a path or its `WEIGHTS` is, if any."""
    folder = path.parent if path.name == WEIGHTS and not path.is_dir() else path
    return folder if holds(folder, (CONFIG, WEIGHTS)) else None


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config.json; CheckpointError unless its tensors are those exported.

    Folders that timm wrote, and those exported before there were digests of files, have none.
    """
    config = read_json(folder / CONFIG, error=CheckpointError, most_bytes=MOST_BYTES)
    ours = config.get("harl_fast")
    known = ours.get("files") if isinstance(ours, dict) else None
    if isinstance(known, dict):
        found = digests(folder)
        for name in (WEIGHTS, PROJECTOR):
            if known.get(name) != found.get(name):
                raise damaged(folder / name)
    return config


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a folder's files of tensors by name. Raises CheckpointError."""
    found = {}
    for file in (folder / WEIGHTS, folder / PROJECTOR):
        try:
            if file.exists():
                found[file.name] = sha256_file(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error})") from error
    return found


def damaged(file: Path) -> CheckpointError:
    """Return the error of a file of tensors that is not the one that was exported."""
    what = "does not hold what was exported" if file.exists() else "is missing"
    return CheckpointError(
        f"{file} {what}: the folder is damaged or was changed. Copy it again, or export it again "
        f"by `make export`"
    )


def read_folder(path: Path) -> Exported:
    """Return what a folder holds, on the CPU.

    One that timm wrote serves too. Raises CheckpointError unless all of the backbone is there, and
    as it was exported.
    """
    config = read_config(path)
    try:
        return _read(path, config)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path / CONFIG} is no configuration of an exported encoder ({type(error).__name__}: "
            f"{error!s:.120}): export it again by `make export`"
        ) from error


def _read(path: Path, config: Mapping[str, Any]) -> Exported:
    ours = config.get("harl_fast")
    if ours is not None and ours.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG}: format is {ours.get('format')!r}, this program reads {FORMAT}"
        )
    inputs = config["pretrained_cfg"]
    channels, size_px = inputs.get("input_size", (3, 224, 224))[:2]
    tree = ours["model"] if ours else _of_timm(config["architecture"], in_channels=channels)
    model = ModelConfig.model_validate(tree)
    grey = channels == 1
    seen = DataConfig.model_validate(
        {
            "views": [{"size_px": int(size_px)}] * 2,
            "mean": inputs.get("mean", LUMA_MEAN if grey else RGB_MEAN),
            "std": inputs.get("std", LUMA_STD if grey else RGB_STD),
        }
    )
    tensors, _ = read_weights(path / WEIGHTS)
    backbone, matched = load_native(model, tensors, where=str(path / WEIGHTS))
    projector = path / PROJECTOR
    classifier, classes = str(inputs.get("classifier")), config.get("label_names") or ()
    head = _head(tensors, backbone, classifier=classifier, where=str(path / WEIGHTS))
    if head is not None and len(classes) not in (0, head.linears[0].out_features):
        raise CheckpointError(
            f"{path / CONFIG}: label_names has {len(classes)} names, the classifier in {WEIGHTS} "
            f"{head.linears[0].out_features} classes: export it again by `make export`"
        )
    return Exported(
        model=model,
        backbone=backbone,
        projector=build_projector(read_weights(projector)[0]) if projector.exists() else None,
        head=head,
        classes=[*map(str, classes)],
        mean=seen.mean,
        std=seen.std,
        size_px=seen.views[0].size_px,
        crop=_crop(inputs.get("crop_pct")),
        assumed=tuple(key for key, theirs in _STATED.items() if theirs not in inputs),
        source=str(ours["source"]) if ours else str(path),
        matched=matched,
        weights_sha256=str(ours["weights_sha256"]) if ours else "",
    )


def _crop(stated: object) -> float | None:
    """Return a folder's share of the shorter side; ValueError for what is none."""
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 < stated <= 1:
        raise ValueError(f"crop_pct is {stated!r}, not a share of the shorter side")
    return float(stated)


def load_native(
    model: ModelConfig, tensors: Mapping[str, Tensor], *, where: str
) -> tuple[Backbone, int]:
    """Return a section's backbone, in eval mode, with a file's tensors, and how many matched.

    See `fitting`, which comes first: a few bytes can state a network of any size.
    """
    weights, _ = fitting(model, tensors, where=where)
    with own_numbers():
        backbone = build_backbone(model).eval()
    backbone.native.load_state_dict(weights, strict=False)
    return backbone, len(weights)


def fitting(
    model: ModelConfig, tensors: Mapping[str, Tensor], *, where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a file's tensors of a section's backbone, and all names that this has.

    Both are by its library's names. Old files of torchvision lack counts of batches: those may be
    missing. Raises CheckpointError unless all others match and are finite.
    """
    with torch.device("meta"):
        expected = build_backbone(model).native.state_dict()
    weights = {
        name: tensors[name]
        for name, like in expected.items()
        if name in tensors and tensors[name].shape == like.shape
    }
    missing = [name for name in expected if name not in weights]
    needed = [name for name in missing if not name.endswith("num_batches_tracked")]
    if needed:
        over = sorted(name for name in tensors if name not in weights)
        other = next((name for name in needed if name in tensors), None)
        shapes = (
            f"; {other} is {tuple(tensors[other].shape)}, not {tuple(expected[other].shape)}"
            if other
            else ""
        )
        raise CheckpointError(
            f"{where}: {len(weights)} of the {len(expected)} tensors of {model.arch} matched; "
            f"missing: {listed(needed)}; left over: {listed(over)}{shapes}. All of the backbone "
            f"must match: give model.arch, model.width, model.stem and model.in_channels as the "
            f"file's network has them, or another file"
        )
    for name, tensor in weights.items():
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: {name} holds {tensor.dtype}, the network has {expected[name].dtype}: "
                f"give a file of weights"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{where}: {name} holds values that are not finite")
    return weights, list(expected)


def _of_timm(architecture: str, *, in_channels: int) -> dict[str, Any]:
    """Return the keys of section ``model`` that timm's name of a network means."""
    name = architecture.partition(".")[0]
    return {"arch": name if name in ARCHS else f"{PREFIX}{name}", "in_channels": in_channels}


def _head(
    tensors: Mapping[str, Tensor], backbone: Backbone, *, classifier: str, where: str
) -> LinearHeads | None:
    weight, bias = (tensors.get(f"{classifier}.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None:
        return None
    kinds = weight.is_floating_point() and bias.is_floating_point()
    if not kinds or weight.ndim != 2 or bias.shape != weight.shape[:1] or not len(bias):
        raise CheckpointError(
            f"{where}: its classifier {classifier} has weights {tuple(weight.shape)} of "
            f"{weight.dtype} and biases {tuple(bias.shape)} of {bias.dtype}, which are no linear "
            f"layer: export it again by `make export`"
        )
    if weight.shape[1] != backbone.out_channels:
        raise CheckpointError(
            f"{where}: its classifier {classifier} takes {weight.shape[1]} features, the encoder "
            f"has {backbone.out_channels}: export it again by `make export`"
        )
    heads = LinearHeads(weight.shape[1], weight.shape[0])
    heads[0].load_state_dict({"weight": weight, "bias": bias})
    return heads.eval()
