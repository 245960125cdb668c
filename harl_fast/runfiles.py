"""What lies in a run folder, and which outputs of other programs would replace it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harl_fast.errors import ConfigError, OutputError
from harl_fast.lock import FOLDER_LOCK, discard_folder

LATEST = "latest"
"""Names the newest checkpoint."""
CHECKPOINT_NAME = re.compile(r"step-[0-9]{8,18}")
"""Of a checkpoint's files, without their suffixes."""


class _Inside:
    """A file or folder of a run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, kind: type[RunFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie."""

    path: Path
    config = _Inside("config.yaml")
    """The resolved method configuration."""
    engine = _Inside("engine.json")
    """The resolved engine file."""
    metrics = _Inside("metrics.jsonl")
    """One JSON record per log line."""
    skipped = _Inside("skipped.jsonl")
    """One JSON record per step without effect: its number and its samples' ids by rank."""
    status = _Inside("run.json")
    """What the run is doing, see `monitor.runjson`."""
    deepspeed = _Inside("deepspeed.log")
    """What DeepSpeed logs on rank 0."""
    subset = _Inside("subset.txt")
    """Names of the training images of a fine-tuning on some of them."""
    provenance = _Inside("provenance.json")
    """See `engine.provenance`."""
    lock = _Inside(FOLDER_LOCK)
    """Held by the process that writes here, see `harl_fast.lock`."""
    finished = _Inside("finished")
    """Marker of a run that came to its end: JSON with step and reason. Written last of all."""
    preempted = _Inside("preempted")
    """The same for one that saved and left before its end."""
    checkpoints = _Inside("checkpoints")
    """See `engine.checkpoint`."""

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, in a folder named after the run, as TensorBoard shows it."""
        return self.path / "tensorboard" / self.path.resolve().name


def discard_run(folder: Path, *, engine: Path) -> None:
    """Delete the run in a folder, if it holds one, to make room for the next under ``engine``.

    Raises ConfigError if the engine file is missing, HarlError if another process writes there.
    """
    if not engine.is_file():
        raise ConfigError(
            f"--engine {engine} is not there: give a file such as ds_configs/cpu.json"
        )
    run = RunFolder(folder)
    if run.config.exists() and run.engine.exists():
        discard_folder(folder)


def is_part_of_a_checkpoint(path: Path) -> bool:
    """Return whether a file has, or would take, a name of this format among checkpoints."""
    named = path.name == LATEST or CHECKPOINT_NAME.fullmatch(path.stem) is not None
    return named and any(path.parent.glob("step-*.json"))


def check_apart(out: Path, *, option: str) -> None:
    """Raise OutputError if the file ``out`` would replace one that a run goes on from.

    option: where the user gave it.
    """
    folder = RunFolder(out.parent)
    own = [entry.name for entry in vars(RunFolder).values() if isinstance(entry, _Inside)]
    of_run = out.name in own and (folder.config.exists() or folder.checkpoints.is_dir())
    if of_run or is_part_of_a_checkpoint(out):
        raise OutputError(f"{option} {out} is a file of the run itself: choose another name")
