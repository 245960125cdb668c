"""Whether a resumed run goes on as it began: its checkpoint's record against what would run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harl_fast.engine.checkpoint.format import Checkpoint, open_checkpoint
from harl_fast.engine.config import (
    FREE_KEYS,
    Batches,
    EngineConfig,
    EngineFile,
    read_engine_file,
    settle,
)
from harl_fast.engine.runfolder import signs_of_a_save
from harl_fast.engine.schedule import LrSchedule
from harl_fast.errors import CheckpointError, ConfigError, nearest
from harl_fast.provenance import Provenance, first_reason, new_run_id, read_provenance
from harl_fast.runfiles import RunFolder
from harl_fast.section import Section
from harl_fast.textfile import nodes, tree_sha256

_FREE = (
    *("log", "data.workers", "data.batches_ahead"),
    *("data.damaged", "data.check", "data.skip_broken"),
)
"""Keys and sections that a resumed run may change: they touch no sound sample and no weight. With
other shards left out, the data are others, see `check_data`."""
_PRECISION = ("bf16", "torch_autocast", "fp16")

ANEW = (
    "start a new run from its weights in another folder (--init-from, or --ckpt of a fine-tuning)"
)
"""What is left where a run cannot go on."""

Changes = dict[str, tuple[Any, Any]]
"""Values before and after by dotted key."""


def settings(config: Section, engine_config: EngineConfig | None = None) -> dict[str, Any]:
    """Return what decides a run's result, as one tree: the method's keys and the engine's.

    The ways to ask for a precision are one key, ``precision``; ``fp16`` stays beside it where the
    loss scale depends on it. Without an engine configuration only the method's.
    """
    tree = config.model_dump()
    if engine_config is None:
        return tree
    engine = engine_config.record()
    tree |= {key: engine[key] for key in engine if key not in (*FREE_KEYS, *_PRECISION)}
    tree["precision"] = engine_config.precision
    if engine_config.precision == "fp16":
        tree["fp16"] = {key: value for key, value in engine["fp16"].items() if key != "enabled"}
    return tree


def settings_sha256(config: Section) -> str:
    """Return a digest of a configuration, but for how much each machine may do at once."""
    tree = config.model_dump(mode="json")
    found: Any = tree["data"]
    tree["data"] = {key: found[key] for key in found if key not in ("workers", "batches_ahead")}
    return tree_sha256(tree)


def recorded_engine(checkpoint: Checkpoint) -> EngineConfig:
    """Return the engine configuration of the run that wrote a checkpoint.

    Raises CheckpointError if the record's is incomplete.
    """
    record, note = checkpoint.record, checkpoint.path.with_suffix(".json")
    try:
        file = EngineFile.model_validate(record.engine)
        return settle(file, ranks=record.ranks, source=str(note))
    except (ValidationError, ConfigError) as error:
        reason = first_reason(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(
            f"{note}: its engine settings cannot be compared ({reason}). Use another checkpoint, "
            f"or {ANEW}"
        ) from error


def first_engine(path: Path) -> EngineConfig:
    """Return the engine configuration of a run without a checkpoint. Raises ConfigError."""
    file = read_engine_file(path)
    each = (file.train_micro_batch_size_per_gpu or 1) * (file.gradient_accumulation_steps or 1)
    return settle(file, ranks=max(1, (file.train_batch_size or 1) // each), source=str(path))


def check_unsaved(folder: RunFolder, *, checkpoint_epochs: int) -> Provenance:
    """Return what is known of a run's starts; CheckpointError if it had a checkpoint once.

    For runs whose folder holds none now.
    """
    known = read_provenance(folder.provenance)
    signs = list(signs_of_a_save(folder, checkpoint_epochs=checkpoint_epochs))
    # Earlier starts may be of a run that was taken away: a start at step 0 has looked for that.
    if known.starts and known.starts[-1].step > 0:
        signs.append(f"{folder.provenance.name} has a start from step {known.starts[-1].step}")
    if signs:
        raise CheckpointError(
            f"{folder.checkpoints} holds no complete checkpoint, but the run had one: "
            f"{'; '.join(signs)}. Bring the checkpoints back, or start again in a new folder"
        )
    return known


def check_data(known: object, beton_sha256: str) -> None:
    """Raise ConfigError if a run began with another container. known: its SHA-256, or nothing."""
    if known not in (None, "", beton_sha256):
        raise ConfigError(
            "--resume: the training set is not the container that the run began with, or other "
            "shards of it are left out (its SHA-256 differs). Give the folder of the old one, or "
            f"{ANEW}"
        )


def check_weights(path: Path, sha256: str, known: object) -> None:
    """Raise ConfigError if a run that begins again did so with other weights before.

    sha256: of those in ``path``. known: of those that it began with, or nothing.
    """
    if known not in (None, "", sha256):
        raise ConfigError(
            f"--resume: {path} has other weights than those that the run began with (their "
            f"SHA-256 differs). Bring those back, or start a new run in another folder"
        )


def seen_text(sync_bn: str, batches: Batches) -> str:
    """Return over how many images BatchNorm normalises, under a ``model.sync_bn``."""
    micro, together = batches.batch_micro, batches.batch_micro * batches.ranks
    if sync_bn == "heads" and batches.ranks > 1:
        return f"{micro} images, in the heads {together},"
    return f"{together if sync_bn == 'all' else micro} images"


def allowed_changes(
    before: tuple[Section, EngineConfig],
    now: tuple[Section, EngineConfig],
    *,
    allowed: Sequence[str],
    where: str,
    remedy: str = "",
) -> Changes:
    """Return what differs from a run so far as the user allows it; see `refuse_changes`.

    Another global batch is refused in any case: the run's position would be in no epoch of it.
    """
    was, batch = (config.batches.batch_global for _, config in (before, now))
    if was != batch:
        raise ConfigError(
            f"{where}: train_batch_size {was} -> {batch}: epochs would have other steps, and no "
            f"--allow-change makes the run's position fit. Keep {was}, or {ANEW}"
        )
    # BatchNorm normalises over each micro batch, whose size touches the result; on another number
    # of ranks it may have to change.
    same_ranks = before[1].batches.ranks == now[1].batches.ranks
    free = () if same_ranks else ("train_micro_batch_size_per_gpu",)
    return refuse_changes(
        settings(*before), settings(*now), allowed=allowed, where=where, free=free, remedy=remedy
    )


def refuse_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    allowed: Sequence[str],
    where: str,
    free: Sequence[str] = (),
    remedy: str = "",
) -> Changes:
    """Return the changes among `settings` that ``allowed`` names, keys or sections.

    where: what is resumed, for the message. free: keys that may change besides those that always
    may. remedy: a sentence, for programs without --resume. Raises ConfigError listing all other
    changes but the free ones, and for a name in ``allowed`` that is no key.
    """
    keys = {key for tree in (before, now) for key, _, _ in nodes(tree) if key}
    for name in allowed:
        if name not in keys:
            raise ConfigError(f"--allow-change {name!r} is no key{nearest(name, keys)}")
    found = changed(before, now)
    kept = {key: values for key, values in found.items() if not _within(key, (*_FREE, *free))}
    refused = {key: values for key, values in kept.items() if not _within(key, allowed)}
    if refused:
        who = "the training there goes on" if remedy else "--resume continues the run"
        usual = (
            f"Leave the options that ask for it out, and undo changes of config.yaml; or change it "
            f"on purpose with --allow-change {next(iter(refused))}; or {ANEW}"
        )
        raise ConfigError(
            f"{where}: {who} as it began, but this differs: {change_text(refused)}. "
            f"{remedy or usual}"
        )
    return kept


def change_text(changes: Changes) -> str:
    """Return changes as ``key before -> after; ...``; of lists of sections the lengths."""

    def text(value: Any) -> str:
        sections = isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
        return f"{len(value)} entries" if sections else f"{value!r:.60}"

    return "; ".join(f"{key} {text(old)} -> {text(new)}" for key, (old, new) in changes.items())


def check_position(checkpoint: Checkpoint, schedule: LrSchedule, *, beton_sha256: str) -> None:
    """Raise ConfigError or CheckpointError if a checkpoint's position is none of this run's."""
    record, note = checkpoint.record, checkpoint.path.with_suffix(".json")
    check_data(record.data.get("beton_sha256", "none"), beton_sha256)
    expected = divmod(record.step, schedule.steps_per_epoch)
    loader = record.position
    positions = {(record.epoch, record.epoch_step), (loader.get("epoch"), loader.get("step"))}
    if positions != {expected} or not isinstance(loader.get("seed"), int):
        raise CheckpointError(
            f"{note}: step {record.step} is step {expected[1]} of epoch {expected[0]} with "
            f"{schedule.steps_per_epoch} steps each; the record says otherwise. Use another "
            f"checkpoint, or {ANEW}"
        )
    if record.step > schedule.total:
        raise ConfigError(
            f"{note}: {record.step} steps are done, more than the {schedule.total} of "
            f"{schedule.epochs} epochs; give more epochs"
        )


def open_latest(folder: RunFolder) -> tuple[Checkpoint, str]:
    """Return a run's latest checkpoint and the run's id, a new one if neither knows it.

    Raises CheckpointError if the checkpoint is damaged or another run's.
    """
    run_id = read_provenance(folder.provenance).run_id
    checkpoint = open_checkpoint(folder.checkpoints, verify=True)
    theirs = checkpoint.record.run_id
    if theirs and run_id and theirs != run_id:
        raise CheckpointError(
            f"{checkpoint.path} was written by run {theirs!r:.40}, provenance.json beside its "
            f"folder is of run {run_id!r:.40}. Bring back this run's own checkpoint, or {ANEW}"
        )
    return checkpoint, run_id or theirs or new_run_id()


def changed(before: Any, after: Any, key: str = "") -> Changes:
    """Return the dotted keys at which two nested structures differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        pairs = [(name, before.get(name), after.get(name)) for name in {**before, **after}]
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if len(before) != len(after):
            return {key: (before, after)}
        pairs = [(str(at), *both) for at, both in enumerate(zip(before, after, strict=True))]
    else:
        return {} if before == after else {key: (before, after)}
    found: Changes = {}
    for name, old, new in pairs:
        found |= changed(old, new, f"{key}.{name}" if key else str(name))
    return found


def _within(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
