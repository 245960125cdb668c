"""One run, one folder: what lies in it, and when it may be written to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harl_fast.config import RunConfig, dump_config, load_config
from harl_fast.engine.dsconfig import EngineConfig
from harl_fast.engine.provenance import now
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.files import write_json, write_text

_FREE = ("log.", "data.workers", "data.batches_ahead", "data.damaged", "data.check")
"""Keys that a resumed run may change: they do not touch a sound sample or a weight."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved method configuration."""
        return self.path / "config.yaml"

    @property
    def engine(self) -> Path:
        """The resolved engine file."""
        return self.path / "engine.json"

    @property
    def metrics(self) -> Path:
        """One JSON record a log line."""
        return self.path / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        """One JSON record a step without effect: its number and its samples' ids by rank."""
        return self.path / "skipped.jsonl"

    @property
    def provenance(self) -> Path:
        """See `engine.provenance`."""
        return self.path / "provenance.json"

    @property
    def finished(self) -> Path:
        """Marker of a run that came to its end: JSON with step and reason. Written last of all."""
        return self.path / "finished"

    @property
    def preempted(self) -> Path:
        """The same for one that saved and left before its end."""
        return self.path / "preempted"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """See `engine.checkpoint`."""
        return self.path / "checkpoints"


def open_run_folder(path: Path, *, resume: bool) -> RunFolder:
    """Return the folder of a new run, or of the one to continue; nothing is written.

    Raises CheckpointError if a new run would mix with what is there, or nothing can be resumed.
    """
    folder = RunFolder(Path(path))
    if folder.path.exists() and not folder.path.is_dir():
        raise CheckpointError(f"{path} is a file; give --run a folder")
    if resume:
        if not folder.config.is_file():
            raise CheckpointError(
                f"{path} holds no run (config.yaml is missing); leave --resume out to start one"
            )
    elif folder.path.is_dir() and any(not _before_a_run(path) for path in folder.path.iterdir()):
        raise CheckpointError(
            f"{path} is not empty. Continue its run with --resume; or start a new one in another "
            f"folder, from its weights if wanted: --run NEW_FOLDER --init-from {path}"
        )
    return folder


def run_config(
    folder: RunFolder, *, name: str | None, overrides: Sequence[str], resume: bool
) -> RunConfig:
    """Return the run's configuration: the one asked for or, when resuming, the folder's own.

    name: preset or file; may be left out when resuming. Raises ConfigError if a resumed run is
    asked to change more than its logging and its worker threads.
    """
    if not resume:
        if name is None:
            raise ConfigError("--config is missing: give a preset's name or a YAML file")
        return load_config(name, overrides=overrides)
    saved = load_config(str(folder.config))
    asked = load_config(name or str(folder.config), overrides=overrides)
    changes = [
        f"{key} {before} -> {after}"
        for key, (before, after) in changed(saved.model_dump(), asked.model_dump()).items()
        if not key.startswith(_FREE)
    ]
    if changes:
        raise ConfigError(
            f"{folder.path}: --resume continues the run as it began, but the configuration asked "
            f"for differs: {'; '.join(changes)}. Leave --config and --set out, or start a new run "
            f"with --init-from {folder.path}"
        )
    return asked


def changed(before: Any, after: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys at which two nested structures differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(name, before.get(name), after.get(name)) for name in {**before, **after}]
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if len(before) != len(after):
            return {key: (before, after)}
        pairs = [(str(at), *both) for at, both in enumerate(zip(before, after, strict=True))]
    else:
        return {} if before == after else {key: (before, after)}
    found: dict[str, tuple[Any, Any]] = {}
    for name, old, new in pairs:
        found |= changed(old, new, f"{key}.{name}" if key else str(name))
    return found


def write_configs(folder: RunFolder, config: RunConfig, engine: EngineConfig) -> None:
    """Write both resolved configurations; call on one rank only, and after `note_start`.

    The method's is written last: with it the folder holds a run.
    """
    write_json(folder.engine, engine.record())
    write_text(folder.config, dump_config(config))


def _before_a_run(path: Path) -> bool:
    """Return whether a process that ended before `write_configs` was done left this."""
    return path.name in ("engine.json", "provenance.json", "preempted") or (
        path.name.startswith(".") and path.name.endswith(".tmp")
    )


def begin(folder: RunFolder, *, step: int) -> None:
    """Drop what an earlier start of the run left after ``step``, and its markers.

    A resumed run writes the records after ``step`` again.
    """
    folder.finished.unlink(missing_ok=True)
    folder.preempted.unlink(missing_ok=True)
    for path in (folder.metrics, folder.skipped):
        _trim(path, step=step)


def mark(marker: Path, *, step: int, reason: str) -> None:
    """Write `RunFolder.finished` or `RunFolder.preempted`; call on one rank only, last of all."""
    write_json(marker, {"step": step, "reason": reason, "time": now()})


def _trim(path: Path, *, step: int) -> None:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the half line of a killed process
