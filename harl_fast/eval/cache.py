"""Features kept on disk, so that a second evaluation of the same network reads no image."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from harl_fast.errors import why
from harl_fast.eval.features import FeatureSet
from harl_fast.files import replacing, to_stderr
from harl_fast.tensorfile import open_tensors, save_tensors

VERSION = 1
"""Of the way from images to features; a change of it makes older files useless."""


class FeatureCache:
    """Features in ``folder``, one safetensors file for each set of facts that decide them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, facts: Mapping[str, Any], *, name: str) -> Path:
        """Return where features are kept. name: a readable beginning of the file's name."""
        text = json.dumps({"version": VERSION, **facts}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / f"{name}-{digest[:24]}.safetensors"

    def get(
        self, facts: Mapping[str, Any], make: Callable[[], FeatureSet], *, name: str
    ) -> FeatureSet:
        """Return the features that ``facts`` decide: the kept ones, else made and then kept.

        facts: JSON values: the weights' digest, the container's, the samples, size, crop,
        normalisation, precision. A file that is damaged is made again, and one that cannot be
        written is left out, which is said.
        """
        path = self.path(facts, name=name)
        if path.exists():
            found = _read(path, facts)
            if isinstance(found, FeatureSet):
                to_stderr(f"features: {len(found.labels):,} read from {path}")
                return found
            to_stderr(f"note: {path} is damaged ({found}); its features are computed again")
        made = make()
        tensors = {"features": made.features, "labels": made.labels}
        about = {"sha256": _digest(made), "facts": json.dumps(facts, sort_keys=True)}
        _remove_left_over(self.folder)
        try:
            with replacing(path) as temporary:
                save_tensors(temporary, tensors, metadata=about)
        except OSError as error:  # they cost a pass over the images, and the evaluation goes on
            to_stderr(f"warning: features are not kept. {why(error)}")
        return made


def _remove_left_over(folder: Path) -> None:
    """Remove what killed processes had half written: no write goes on for an hour unchanged."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - 3600:
                path.unlink()


def _read(path: Path, facts: Mapping[str, Any]) -> FeatureSet | str:
    """Return the features in a file, or why they are not usable."""
    try:
        with open_tensors(path) as file:
            names = set(file.keys())
            if names != {"features", "labels"}:
                return "it holds other tensors"
            found = FeatureSet(file.get_tensor("features"), file.get_tensor("labels"))
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        return str(error)
    if about.get("facts") != json.dumps(facts, sort_keys=True):
        return "it holds those of another network, set or size"
    if _digest(found) != about.get("sha256"):
        return "its checksum differs"
    return found if _is_sound(found) else "its numbers are of another kind, or not finite"


def _is_sound(found: FeatureSet) -> bool:
    features, labels = found.features, found.labels
    kinds = (features.dtype, features.ndim, labels.dtype, labels.shape)
    right = (torch.float32, 2, torch.int64, features.shape[:1])
    return kinds == right and features.numel() > 0 and bool(torch.isfinite(features).all())


def _digest(data: FeatureSet) -> str:
    found = hashlib.sha256()
    for tensor in (data.features, data.labels):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
