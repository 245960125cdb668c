"""Checkpoints: one safetensors file and its JSON record, independent of stage and rank count.

A run's ``checkpoints/`` holds ``step-00003750.safetensors`` with fp32 tensors ``online.*``,
``target.*``, ``optim.<state>.<parameter>``, under fp16 ``scale.*``, and ``ranks.*`` with one row a
rank (see `engine.parts`); a ``.json`` record of the same name; and ``latest``, a text file with the
newest complete name. The record is written after the tensors and ``latest`` after both, each under
a temporary name first, so that a crash at any point leaves a checkpoint to resume from. Nothing is
pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harl_fast.config import RunConfig, Section
from harl_fast.engine.provenance import code_version, now
from harl_fast.errors import CheckpointError
from harl_fast.files import replacing, write_json, write_text
from harl_fast.model.backbone import Backbone, build_backbone

FORMAT_VERSION = 1
LATEST = "latest"


class Record(Section):
    """What the JSON says about a checkpoint."""

    format_version: int = FORMAT_VERSION
    step: int = Field(ge=0)
    """Optimizer steps done."""
    epoch: int = Field(ge=0)
    """Whole epochs done."""
    epoch_step: int = Field(ge=0)
    """Steps done of the epoch under way; with ``epoch`` the loader's position."""
    skipped: int = 0
    """Steps of these whose gradients were not finite, so that nothing moved."""
    config: RunConfig
    engine: dict[str, Any]
    """The DeepSpeed file as settled for the run that wrote this."""
    ranks: int = 1
    """Processes of the run that wrote this."""
    loader: dict[str, int | str] = Field(default_factory=dict)
    """The loader's position and what it counts in."""
    data: dict[str, Any]
    """The container's ``count`` and ``beton_sha256``."""
    code: str
    """Version of harl_fast, and the git commit if there is one."""
    created: str
    tensors_bytes: int
    """Size of the safetensors file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is known to be complete; tensors are read when asked for."""

    path: Path
    record: Record

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``prefix.``, without it, on the CPU."""
        try:
            with safe_open(self.path, framework="pt") as stream:
                names = [name for name in stream.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118
                return {name[len(prefix) + 1 :]: stream.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read ({error}). {_other(self.path)}"
            ) from error


def write_checkpoint(
    folder: Path, *, tensors: Mapping[str, Tensor], record: dict[str, Any]
) -> Checkpoint:
    """Write a checkpoint into ``folder`` and make it the latest; call on one rank only.

    record: the fields of `Record` that the caller knows; the others are filled in here.
    """
    path = folder / f"step-{record['step']:08d}.safetensors"
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would leave the file to its owner alone
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.chmod(mode)
    full = Record(**record, code=code_version(), created=now(), tensors_bytes=path.stat().st_size)
    note = path.with_suffix(".json")
    try:
        write_json(note, full.model_dump(mode="json"))
    except OSError:
        if not note.is_file():
            path.unlink()  # of no use without its record, and the disk may be full
        raise
    write_text(folder / LATEST, path.stem + "\n")
    return Checkpoint(path, full)


def prune(folder: Path, *, keep_last: int, keep_every_epochs: int) -> None:
    """Delete checkpoints that are neither among the newest nor at a kept epoch's end.

    Newest up to the latest: what lies after it was left behind by a run that went back to an
    earlier one, and is written over when the run gets there.
    """
    latest = _tensor_file(folder).name
    paths = sorted(path for path in folder.glob("step-*.safetensors") if path.name <= latest)
    for path in paths[:-keep_last]:
        try:
            record = open_checkpoint(path).record
        except CheckpointError:
            kept = False  # what a killed save or deletion left: nothing opens it
        else:
            kept = record.epoch_step == 0 and record.epoch % keep_every_epochs == 0
        if not kept:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):  # of a save that was killed
        leftover.unlink()


def last_before(folder: Path, *, step: int) -> Path | None:
    """Return the newest complete checkpoint of at most so many steps, if there is one."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            if open_checkpoint(path).record.step <= step:
                return path
        except CheckpointError:
            continue
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at ``path``: a file, a run folder, or its checkpoints folder.

    A folder stands for its latest checkpoint. Raises CheckpointError if it is missing, incomplete
    or of another format.
    """
    file = _tensor_file(Path(path))
    note = file.with_suffix(".json")
    try:
        record = Record.model_validate_json(note.read_text(encoding="utf-8"))
        size = file.stat().st_size
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} does not exist. {_other(file)}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(
            f"{note} is not a checkpoint's record ({reason}). {_other(file)}"
        ) from error
    if record.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{note} has format {record.format_version}; this program reads {FORMAT_VERSION}. "
            f"It was written by harl_fast {record.code}: use that version"
        )
    if size != record.tensors_bytes:
        raise CheckpointError(
            f"{file} has {size:,} bytes, its record says {record.tensors_bytes:,}: it was cut "
            f"short or changed. {_other(file)}"
        )
    return Checkpoint(file, record)


def load_encoder(path: Path) -> tuple[Backbone, RunConfig]:
    """Return a checkpoint's online backbone, on the CPU and in eval mode, and its configuration.

    path: as for `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.record.config
    encoder = random_encoder(config, seed=0)
    try:
        encoder.load_state_dict(checkpoint.tensors("online.backbone"))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not hold the backbone that its record describes: {error}"
        ) from error
    return encoder, config


def random_encoder(config: RunConfig, *, seed: int) -> Backbone:
    """Return a freshly initialised backbone, on the CPU and in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_backbone(
            config.model.arch,
            stem=config.model.stem,
            width=config.model.width,
            last_stride=config.model.last_stride,
            zero_init_residual=config.model.zero_init_residual,
        )
    return encoder.eval()


def _tensor_file(path: Path) -> Path:
    if path.suffix in (".safetensors", ".json"):
        return path.with_suffix(".safetensors")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    try:
        name = (folder / LATEST).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path} holds no checkpoint ({folder / LATEST} is missing). Give a run folder that "
            f"has one, or a step-*.safetensors file; a run that ended before its first save must "
            f"start again in a new folder"
        ) from error
    return folder / f"{name}.safetensors"


def _other(file: Path) -> str:
    """Say what else could be used in place of ``file``."""
    complete = sorted(
        other.stem
        for other in file.parent.glob("step-*.safetensors")
        if other != file and other.with_suffix(".json").is_file()
    )
    if not complete:
        return "There is no other checkpoint beside it: start the run again in a new folder"
    return (
        f"Another one beside it is {complete[-1]}: to resume from that, write its name into "
        f"{file.parent / LATEST}"
    )
