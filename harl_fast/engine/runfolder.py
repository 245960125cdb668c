"""One run, one folder: when it may be written to, and its configurations."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harl_fast.config import RunConfig, load_config, override_config
from harl_fast.engine.config import EngineConfig
from harl_fast.engine.stop import process_age_s
from harl_fast.errors import CheckpointError, ConfigError
from harl_fast.files import read_regular, to_stderr, write_json, write_text
from harl_fast.host import utc_time
from harl_fast.runfiles import RunFolder, before_a_run, runs_of_seeds
from harl_fast.section import Section
from harl_fast.side import required


def open_run_folder(path: Path, *, resume: bool, source: str = "--init-from") -> RunFolder:
    """Return the folder of a new run, or of the one to continue; nothing is written.

    source: the option that names the weights of a new run.

    Raises CheckpointError if a new run would mix with what is there, or nothing can be resumed.
    """
    folder = RunFolder(Path(path))
    if folder.path.exists() and not folder.path.is_dir():
        raise CheckpointError(f"{path} is a file; give --run a folder")
    holds_run = folder.config.exists() or folder.checkpoints.is_dir()
    others = folder.path.is_dir() and any(not before_a_run(each) for each in folder.path.iterdir())
    if resume and not holds_run:
        why = _instead(folder, source, others=others)
        raise CheckpointError(f"{path} holds no run (config.yaml is missing); {why}")
    if not resume and others and not holds_run:
        raise CheckpointError(
            f"{path} is not empty and holds no run: {_instead(folder, source, others=True)}"
        )
    if not resume and others:
        raise CheckpointError(
            f"{path} is not empty. Continue its run with --resume; or start a new one in another "
            f"folder, from its weights if wanted: --run NEW_FOLDER {source} {path}"
        )
    return folder


def _instead(folder: RunFolder, source: str, *, others: bool) -> str:
    """Return what to do about a folder without a run. others: it holds other files."""
    if seeds := runs_of_seeds(folder.path):
        return f"it has one for each seed: give --seeds {len(seeds)}, or --run .../{seeds[0].name}"
    if others:
        return "give --run a folder of its own"
    options = "--resume and --mode eval" if source == "--ckpt" else "--resume"
    return f"leave {options} out to start one"


def run_config(
    folder: RunFolder,
    *,
    name: str | None,
    overrides: Sequence[str],
    resume: bool,
    record: RunConfig | None = None,
) -> RunConfig:
    """Return the configuration that is asked for; a resumed run's is compared later.

    name: preset or file; left out, a run that is resumed is asked for as its config.yaml says or,
    where that is missing, as its checkpoint's record does. Raises ConfigError.
    """
    if name is not None:
        return load_config(name, overrides=overrides)
    if not resume:
        raise ConfigError("--config is missing: give a preset's name or a YAML file")
    if record is not None and not folder.config.exists():
        return override_config(record, overrides)
    try:
        return load_config(str(folder.config), overrides=overrides)
    # What a damaged file makes a YAML reader raise besides its own errors.
    except (ConfigError, OSError, ValueError, RecursionError, MemoryError) as error:
        instead = "delete it: the checkpoint's record has the configuration too"
        known = isinstance(error, ConfigError)
        *lines, last = error.args if known else (f"{folder.config}: {error!s:.120}",)
        instead = instead if record else "start a new run in another folder"
        raise ConfigError(*lines, f"{last}. If it is damaged, {instead}") from error


def write_configs(folder: RunFolder, config: Section, engine: EngineConfig) -> None:
    """Write both resolved configurations; call on one rank only, and after `note_start`.

    The method's is written last: with it the folder holds a run.
    """
    write_json(folder.engine, engine.record())
    write_text(folder.config, config.yaml())


def begin(folder: RunFolder, *, step: int) -> None:
    """Drop what an earlier start of the run left after ``step``, and its markers.

    A resumed run writes the records after ``step`` again.
    """
    drop_markers(folder)
    for path in (folder.metrics, folder.skipped):
        _trim(path, step=step)
    for pattern in (".*.tmp", "sheets/.*.tmp"):
        for leftover in folder.path.glob(pattern):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)


def drop_markers(folder: RunFolder) -> None:
    """Drop what tells how an earlier start ended, or asked it to."""
    folder.finished.unlink(missing_ok=True)
    folder.preempted.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if folder.stop.stat().st_mtime < time.time() - process_age_s():  # no wish of this start's
            folder.stop.unlink()
            to_stderr(f"{folder.stop} is older than this start and stops nothing; removed")


def signs_of_a_save(folder: RunFolder, *, checkpoint_epochs: int) -> Iterator[str]:
    """Yield what the folder's other files tell of a checkpoint that must have been complete.

    Of epochs, no fewer than two periods do: the first write may still be under way until the
    second one is due, and is waited for then.
    """
    name = _tree(folder.status).get("last_checkpoint")
    if isinstance(name, str) and name:
        yield f"{folder.status.name} names {name[:40]!a}"
    for marker in (folder.finished, folder.preempted):
        step = _number(_tree(marker), "step")
        if step > 0:
            yield f"{marker.name} says step {step:.0f}"
    epoch = max((_number(tree, "epoch") for tree in json_lines(folder.metrics)), default=0.0)
    if epoch > 2 * checkpoint_epochs:
        yield f"{folder.metrics.name} goes on into epoch {epoch:.0f}"


def mark(marker: Path, *, step: int, reason: str) -> None:
    """Write `RunFolder.finished` or `RunFolder.preempted` and drop the other one and `stop`.

    Call on one rank of a machine, when all ranks have finished. Raises CheckpointError if it cannot
    be written: scripts wait for it.
    """
    folder = RunFolder(marker.parent)
    with required(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)  # on a machine that does not share it
        for other in {folder.finished, folder.preempted, folder.stop} - {marker}:
            other.unlink(missing_ok=True)
        write_json(marker, {"step": step, "reason": reason, "time": utc_time()})


def _trim(path: Path, *, step: int) -> None:
    """Drop the lines of JSON records after ``step``, and tell of lines that are no records."""
    if not path.is_file():
        return
    try:
        lines = [(_step_of(line), line) for line in read_regular(path).splitlines(keepends=True)]
        kept = [line for at, line in lines if at is not None and at <= step]
        # The last may be the half line of a killed process.
        damaged = sum(at is None for at, _ in lines[:-1])
        if damaged:
            to_stderr(f"warning: {path}: {damaged} lines that are no records are left out")
        if len(kept) < len(lines):
            write_text(path, b"".join(kept).decode())
    except OSError as error:
        to_stderr(f"warning: {path} cannot be trimmed to step {step}: {error}")


def _tree(path: Path) -> dict[str, Any]:
    """Return the object in a file, or an empty one where there is none."""
    try:
        return _parsed(read_regular(path))
    except OSError:
        return {}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of one per line, empty for lines that hold none.

    A kill within a write leaves half a line. Nothing where there is no file.
    """
    try:
        return [_parsed(line) for line in read_regular(path).splitlines()]
    except OSError:
        return []


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _whole(digits: str) -> int | float:
    """Return a whole number; of more digits than any step has, as only damage leaves, a float."""
    return int(digits) if len(digits) < 19 else float(digits)


def _number(tree: dict[str, Any], key: str) -> float:
    """Return a finite number, or 0 where there is none."""
    value = tree.get(key)
    return value if isinstance(value, int | float) and abs(value) < 2**63 else 0


def _step_of(line: bytes) -> float | None:
    """Return a record's step, or None if the line is no record."""
    try:
        return float(json.loads(line.decode())["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
