"""Checkpoints: one safetensors file and its JSON record, independent of stage and rank count.

A run's ``checkpoints/`` holds ``step-00003750.safetensors`` with fp32 tensors ``online.*``,
``target.*``, ``optim.<state>.<parameter>``, under fp16 ``scale.*``, and ``ranks.*`` with one row
per rank (see `engine.snapshot`); a ``.json`` record of the same name; and ``latest``, a text file
with the newest complete name. The record is written after the tensors and ``latest`` after both,
each under a temporary name first, so that a crash at any point leaves a checkpoint to resume from.
The record holds the SHA-256 of the tensors and of itself. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from harl_fast.config import RunConfig
from harl_fast.errors import CheckpointError
from harl_fast.files import read_regular, replacing, sha256_file, write_json, write_text
from harl_fast.finetuning import FinetuneConfig
from harl_fast.host import utc_time
from harl_fast.model.names import Receipt
from harl_fast.model.timm_network import PREFIX
from harl_fast.model.weightfile import GIVEN
from harl_fast.provenance import code_version, first_reason
from harl_fast.runfiles import CHECKPOINT_NAME, LATEST, runs_of_seeds
from harl_fast.section import Section
from harl_fast.tensorfile import open_tensors, save_tensors
from harl_fast.textfile import tree_sha256

FORMAT_VERSION = 1


class Record(Section):
    """What the JSON says about a checkpoint."""

    format_version: int = FORMAT_VERSION
    step: int = Field(ge=0)
    """Optimizer steps done."""
    epoch: int = Field(ge=0)
    """Whole epochs done."""
    epoch_step: int = Field(ge=0)
    """Steps done of the epoch under way; with ``epoch`` the loader's position."""
    skipped: int = Field(0, ge=0)
    """Steps of these whose gradients were not finite, so that nothing moved."""
    config: RunConfig
    """Of a fine-tuning: what is known of the pretraining behind it, its network at least."""
    finetune: FinetuneConfig | None = None
    """What a fine-tuning's run was, see `harl_fast.finetuning`; None for pretraining."""
    engine: dict[str, Any]
    """The DeepSpeed file as settled for the run that wrote this."""
    ranks: int = Field(1, ge=1)
    """Processes of the run that wrote this."""
    loader: dict[str, int | str] = Field(default_factory=dict)
    """The loader's position and what it counts in."""
    data: dict[str, Any]
    """The container's ``count`` and ``beton_sha256``; of a fine-tuning also its classes."""
    code: str
    """Version of harl_fast, and the git commit if there is one."""
    created: str
    tensors_bytes: int
    """Size of the safetensors file."""
    run_id: str = ""
    """Of the run that wrote this, see `harl_fast.provenance`; older records have none."""
    tensors_sha256: str = ""
    """Of the safetensors file; older records have none."""
    record_sha256: str = ""
    """Of all other fields, see `_seal`."""

    @property
    def position(self) -> dict[str, int | str]:
        """Where the loader was; older records have no ``loader``."""
        if self.loader:
            return self.loader
        return {"seed": self.config.seed, "epoch": self.epoch, "step": self.epoch_step}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is known to be complete; tensors are read when asked for."""

    path: Path
    record: Record
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a user of it should be told, one line each."""

    @property
    def sha256(self) -> str:
        """Of its tensors, by its record; older ones have none."""
        return self.record.tensors_sha256

    @property
    def receipt(self) -> Receipt:
        """Of the backbone: what loads it raises unless all of its tensors match."""
        try:
            with open_tensors(self.path) as stream:
                count = sum(name.startswith("online.backbone.") for name in stream.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from error
        naming = "timm" if self.record.config.model.arch.startswith(PREFIX) else "torchvision"
        run = self.path.parent
        run = run.parent if run.name == "checkpoints" else run
        return Receipt(count, count, f"{naming} names", f"{run} step {self.record.step}")

    def _unreadable(self, error: Exception) -> CheckpointError:
        again = alternative(self.path)
        return CheckpointError(f"{self.path} cannot be read ({error}). {again}")

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``prefix.``, without it, on the CPU.

        Raises CheckpointError if they cannot be read, or one of them is not finite. Running
        statistics may be: a single step whose loss was not finite leaves them so, and training
        does not read them.
        """
        try:
            with open_tensors(self.path) as stream:
                names = [name for name in stream.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118
                found = {name: stream.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from error
        free = ("running_mean", "running_var", "ranks.statistics")
        for name, tensor in found.items():
            if not (name.endswith(free) or tensor.isfinite().all()):
                raise CheckpointError(
                    f"{self.path}: {name} holds values that are not finite. "
                    f"{alternative(self.path)}"
                )
        return {name[len(prefix) + 1 :]: tensor for name, tensor in found.items()}


def write_checkpoint(
    folder: Path, *, tensors: Mapping[str, Tensor], record: dict[str, Any]
) -> Checkpoint:
    """Write a checkpoint into ``folder`` and make it the latest; call on one rank only.

    record: the fields of `Record` that the caller knows; the others are filled in here.
    """
    path = folder / f"step-{record['step']:08d}.safetensors"
    note = path.with_suffix(".json")
    with replacing(path) as temporary:
        save_tensors(temporary, tensors)
        size, digest = temporary.stat().st_size, sha256_file(temporary)
        # A run that went back to an earlier checkpoint comes by here again: the old record must
        # not stand beside the new tensors.
        note.unlink(missing_ok=True)
    full = Record(
        **record, tensors_bytes=size, tensors_sha256=digest, code=code_version(), created=utc_time()
    )
    full = full.model_copy(update={"record_sha256": _seal(full.model_dump(mode="json"))})
    try:
        write_json(note, full.model_dump(mode="json"))
    except OSError:
        path.unlink()  # of no use without its record, and the disk may be full
        raise
    write_text(folder / LATEST, path.stem + "\n")
    return Checkpoint(path, full)


def prune(folder: Path, *, keep_last: int, keep_every_epochs: int) -> None:
    """Delete checkpoints that are neither among the newest nor at a kept epoch's end.

    Newest up to the latest: what lies after it was left behind by a run that went back to an
    earlier one, and is written over when the run gets there.
    """
    latest = _latest(folder)[0]
    paths = [path for path in _tensor_files(folder) if _step(path) <= _step(latest)]
    for path in paths[:-keep_last]:
        try:
            record = open_checkpoint(path).record
        except CheckpointError:
            kept = False  # what a killed save or deletion left: nothing opens it
        else:
            kept = record.epoch_step == 0 and record.epoch % keep_every_epochs == 0
        if not kept:
            # In this order: what a kill in between leaves is found by the next deletion.
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
    for note in folder.glob("step-*.json"):
        if CHECKPOINT_NAME.fullmatch(note.stem) and not note.with_suffix(".safetensors").exists():
            note.unlink()
    for leftover in folder.glob(".*.tmp"):  # of a save that was killed
        leftover.unlink()


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Set all tensors of a module; RuntimeError unless names, shapes and dtypes are its own.

    torch itself drops imaginary parts and digits. assign: for a module on the device meta.
    """
    for name, own in module.state_dict().items():
        if name in tensors and tensors[name].dtype != own.dtype:
            raise RuntimeError(f"{name} is {tensors[name].dtype} instead of {own.dtype}")
    module.load_state_dict(tensors, assign=assign)


def mismatch(error: RuntimeError) -> str:
    """Return in one short line why `torch.nn.Module.load_state_dict` refused a checkpoint."""
    return " ".join(str(error).split())[:200]


def last_before(folder: Path, *, step: float) -> Path | None:
    """Return the newest complete checkpoint of at most so many steps, if there is one."""
    for path in reversed(_tensor_files(folder)):
        try:
            if open_checkpoint(path).record.step <= step:
                return path
        except CheckpointError:
            continue
    return None


def latest_step(folder: Path) -> int:
    """Return the step of a folder's latest checkpoint, as its name says; 0 if there is none."""
    name = last_name(folder)
    return _step(Path(name)) if name != "none" else 0


def last_name(folder: Path) -> str:
    """Return the name of the checkpoint that a folder stands for, or "none"."""
    try:
        return _latest(folder)[0].stem
    except CheckpointError:
        return "none"


def is_before_the_first(folder: Path) -> bool:
    """Return whether a run with this checkpoints folder has not completed its first one yet.

    A kill within that save may have left its tensors without a record.
    """
    records = [path for path in folder.glob("step-*.json") if CHECKPOINT_NAME.fullmatch(path.stem)]
    return not (folder / LATEST).exists() and not records and len(_tensor_files(folder)) <= 1


def open_checkpoint(path: Path, *, verify: bool = False) -> Checkpoint:
    """Return the checkpoint at ``path``: a file, a run folder, or its checkpoints folder.

    A folder stands for its latest checkpoint: the one that ``latest`` names or, without a valid
    ``latest``, the newest complete one. verify: compare the tensors with their SHA-256, which
    reads the whole file. Raises CheckpointError if it is missing, incomplete, changed, or of
    another format.
    """
    path, notes = Path(path), tuple[str, ...]()
    if not path.exists() and not CHECKPOINT_NAME.fullmatch(path.stem):
        raise CheckpointError(f"{path} does not exist: give {GIVEN}")
    if path.suffix in (".safetensors", ".json"):
        file = path.with_suffix(".safetensors")
    elif path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint by its name: give {GIVEN}")
    else:
        file, notes = _latest(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    record = _read_record(file)
    digest = ""
    try:
        size = file.stat().st_size
        if verify and record.tensors_sha256:
            digest = sha256_file(file)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}. {alternative(file)}") from error
    if size != record.tensors_bytes:
        raise CheckpointError(
            f"{file} has {size:,} bytes, its record says {record.tensors_bytes:,}: it was cut "
            f"short or changed. {alternative(file)}"
        )
    if verify and not record.tensors_sha256:
        notes += (
            f"warning: {file} is older than checksums of checkpoints: that its tensors are "
            f"unchanged is not known",
        )
    elif verify and digest != record.tensors_sha256:
        raise CheckpointError(
            f"{file} has another SHA-256 than its record says: it was changed or damaged after "
            f"it was written. {alternative(file)}"
        )
    return Checkpoint(file, record, notes)


def _read_record(file: Path) -> Record:
    """Return the checked record of a safetensors file."""
    note = file.with_suffix(".json")
    try:
        text = read_regular(note)
        tree = json.loads(text)
        # Not by pydantic's own parser: a path that is no UTF-8 holds what it calls an error.
        record = Record.model_validate(tree)
    except OSError as error:
        raise CheckpointError(f"{note}: {error.strerror or error}. {alternative(file)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{note} is not a checkpoint's record ({first_reason(error)}). {alternative(file)}"
        ) from error
    if record.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{note} has format {record.format_version}; this program reads {FORMAT_VERSION}. "
            f"It was written by harl_fast {record.code[:80]!r}: use that version"
        )
    # Older records have none of the three; none was ever written with one of them alone.
    new = record.run_id or record.tensors_sha256 or record.record_sha256
    if new and record.record_sha256 != _seal(tree):
        what = "differs" if record.record_sha256 else "is missing"
        raise CheckpointError(
            f"{note} was changed after it was written (its SHA-256 {what}). {alternative(file)}"
        )
    if record.skipped > record.step:
        raise CheckpointError(
            f"{note}: {record.skipped} of {record.step} steps were skipped, which cannot be. "
            f"{alternative(file)}"
        )
    if CHECKPOINT_NAME.fullmatch(file.stem) and _step(file) != record.step:
        raise CheckpointError(
            f"{note} says step {record.step}, not its name's. {alternative(file)}"
        )
    return record


def _seal(tree: dict[str, Any]) -> str:
    """Return the SHA-256 of a record's other fields, whatever order they are in."""
    rest = {key: value for key, value in tree.items() if key != "record_sha256"}
    return tree_sha256(rest)


def _tensor_files(folder: Path) -> list[Path]:
    """Return all tensors of checkpoints, complete or not, in the order of their steps."""
    files = folder.glob("step-*.safetensors")
    return sorted((path for path in files if CHECKPOINT_NAME.fullmatch(path.stem)), key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _latest(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return a folder's latest checkpoint, and what is to be told of it."""
    latest = folder / LATEST
    try:
        name = read_regular(latest).decode("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        reason = f"{latest} is missing"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{latest} cannot be read ({type(error).__name__})"
    else:
        if CHECKPOINT_NAME.fullmatch(name):
            return folder / f"{name}.safetensors", ()
        reason = f"{latest} names no checkpoint"
    newest = last_before(folder, step=float("inf"))
    if newest is not None:
        return newest, (f"warning: {reason}; the newest complete checkpoint is {newest.stem}",)
    if _tensor_files(folder):
        raise CheckpointError(
            f"{folder} holds no complete checkpoint, and {reason}. Bring back the files that are "
            f"missing, or start again in a new folder"
        )
    if seeds := runs_of_seeds(folder):
        raise CheckpointError(f"{folder} holds a run for each seed: give one, such as {seeds[0]}")
    raise CheckpointError(
        f"{folder} holds no checkpoint ({reason}). Give a run folder that has one, or a "
        f"step-*.safetensors file; a run that ended before its first save must start again in a "
        f"new folder"
    )


def alternative(file: Path) -> str:
    """Say what else could be used in place of ``file``."""
    complete = sorted(
        other.stem
        for other in file.parent.glob("step-*.safetensors")
        if other != file and other.with_suffix(".json").is_file()
    )
    if not complete:
        return (
            "There is no other checkpoint beside it: copy one here whole, its .json with its "
            ".safetensors, or start the run again in a new folder"
        )
    return (
        f"Another one beside it is {complete[-1]}: to resume from that, write its name into "
        f"{file.parent / LATEST}"
    )
