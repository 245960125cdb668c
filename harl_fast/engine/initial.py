"""Weights that a new pretraining starts from: a checkpoint's, or an encoder without heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from harl_fast.config import ModelConfig
from harl_fast.engine.checkpoint.format import Checkpoint, open_checkpoint
from harl_fast.engine.networks import is_foreign
from harl_fast.errors import ConfigError
from harl_fast.model.folder import WEIGHTS, fitting, folder_of, read_config
from harl_fast.model.harl import HARL
from harl_fast.model.names import anchor, listed, locate
from harl_fast.model.weightfile import digest, read_weights, refuse_other_frameworks


@dataclass(frozen=True)
class EncoderFile:
    """A backbone's weights from a file without heads, matched with a configuration's backbone."""

    path: Path
    weights: dict[str, Tensor]
    """By the names of the backbone's library, see `Backbone.native`."""
    notes: tuple[str, ...]
    """The receipt: what matched, and what was left over."""

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return digest(self.weights)

    def load_into(self, harl: HARL) -> None:
        """Set the backbones of both networks; the heads stay as they are."""
        for network in (harl, harl.target):
            # Only counts of batches may be missing, which old files of torchvision lack.
            network.backbone.native.load_state_dict(self.weights, strict=False)


def open_initial(path: Path, model: ModelConfig) -> Checkpoint | EncoderFile:
    """Return what ``--init-from`` names: a checkpoint, or an encoder that `load_pretrained` reads.

    Raises HarlError, also if it does not hold all of the backbone that ``model`` describes.
    """
    refuse_other_frameworks(path)
    if folder := folder_of(path):
        read_config(folder)  # which compares the digests
    file = folder / WEIGHTS if folder else path
    if not is_foreign(file):
        found = open_checkpoint(path, verify=True)
        return replace(found, notes=(*found.notes, f"weights: {found.receipt}"))
    tensors, _ = read_weights(file)
    located = locate(tensors, where=str(path), anchor=anchor(model))
    if located.pads_by_2 and model.stem in ("small", "small-s2"):
        raise ConfigError(
            f"model.stem {model.stem}: the 3x3 stem in {path} has stride 1 and pads by 2, as "
            f"{located.naming.split()[0]} has it; set model.stem to small-pad2"
        )
    weights, expected = fitting(model, located.backbone, where=str(path))
    missing = [name for name in expected if name not in weights]
    over = sorted(name for name in located.backbone if name not in expected)
    note = (
        f"{path}: {len(weights)} of the {len(expected)} tensors of {model.arch} matched, "
        f"{located.naming}; missing: {listed(missing)}; left over: {listed(over)}; the heads start "
        f"at random"
    )
    return EncoderFile(path, weights, (note,))
